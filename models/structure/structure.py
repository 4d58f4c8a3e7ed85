"""The shape of a network without its weights. Standard library only.

A `Structure` is stages of blocks, down to `Op`s. Everything that can be counted (MACs, parameters, bytes, milliseconds,
FPGA cycles) is a sum over `Op`s, so a plan is priced without touching a tensor. Sizes are per image; a price multiplies
`rows` by the batch. Hierarchical networks fit: a stage has entry operations (patch merging, pooling), may hold parallel
branches, its blocks may work in windows or on reduced keys, and it says whether its token grid is free to shrink.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from models.record import Record, later
from models.structure.block import Block, Quantity, block_total
from models.structure.op import Op, ops_in

Axis = Literal["embed", "inputs", "qk", "v", "halves"]
"""Members that some architectures cannot lose: embedding dims, inputs of single layers, dims inside heads, and the
attention or MLP of a block alone. Heads, neurons and whole blocks can go everywhere; for tokens, see `Stage`."""


@dataclass(frozen=True)
class Stage(Record):
    """Blocks that share a token grid. `free_tokens`: no later layer needs the grid, so tokens may go."""

    name: str
    blocks: tuple[Block, ...]
    free_tokens: bool
    entry: tuple[Op, ...] = ()
    branches: tuple["Stage", ...] = ()
    follows: bool = later(False)
    """Its tokens are those that the stage before has left, however many."""
    in_graph: bool = later(False)
    """Its tokens leave a graph (models/graph/tokens/cut.py): in the middle of a block and by its own attention."""

    def ops(self) -> Iterator[Op]:
        yield from self.entry
        for branch in self.branches:
            yield from branch.ops()
        for block in self.blocks:
            yield from block.ops()


@dataclass(frozen=True)
class Structure(Record):
    name: str
    image: tuple[int, int, int]
    classes: int
    """0: no classifier, the outputs are features."""
    prefix: int
    """Class, distillation and register tokens: never removed, always first."""
    has_class_token: bool
    stem: tuple[Op, ...]
    stages: tuple[Stage, ...]
    tail: tuple[Op, ...]
    fixed: tuple[Axis, ...] = later(())
    """What cannot be cut in this architecture. Where the embedding width is fixed it may differ between stages."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for stage in self.stages for block in stage.blocks)

    @property
    def width(self) -> int:
        """Of the first block; stages may differ."""
        return self.blocks[0].width

    @property
    def tokens(self) -> int:
        """Of the first block; stages may differ."""
        return self.blocks[0].tokens

    @property
    def first_blocks(self) -> tuple[int, ...]:
        """Index of the first block of each stage: nothing that an earlier block saw of single tokens holds there."""
        sizes = [len(stage.blocks) for stage in self.stages]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    def ops(self) -> Iterator[Op]:
        yield from self.stem
        for stage in self.stages:
            yield from stage.ops()
        yield from self.tail

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        return _macs(self.stem) + self.block_macs + _macs(self.tail)

    def in_precision(self, precision: Literal["fp32", "fp16"]) -> "Structure":
        """The same with everything in one precision."""
        stages = tuple(_stage_in(stage, precision) for stage in self.stages)
        return dataclasses.replace(
            self, stem=ops_in(self.stem, precision), stages=stages, tail=ops_in(self.tail, precision)
        )

    @property
    def block_macs(self) -> int:
        """MACs of the blocks alone: the arithmetic of most papers, MDC among them."""
        return sum(_stage_sum(stage, "macs") for stage in self.stages)

    @property
    def params(self) -> int:
        ends = sum(op.params for op in self.stem + self.tail)
        return ends + sum(_stage_sum(stage, "params") for stage in self.stages)

    @property
    def weight_bytes(self) -> int:
        """Of all weights in a file."""
        ends = sum(op.weight_bytes for op in self.stem + self.tail)
        return ends + sum(_stage_sum(stage, "weight_bytes") for stage in self.stages)


def _stage_in(stage: Stage, precision: str) -> Stage:
    return dataclasses.replace(
        stage, entry=ops_in(stage.entry, precision),
        blocks=tuple(dataclasses.replace(block, precision=precision, exact=()) for block in stage.blocks),
        branches=tuple(_stage_in(branch, precision) for branch in stage.branches),
    )  # fmt: skip


def _stage_sum(stage: Stage, quantity: Quantity) -> int:
    inner = sum(_stage_sum(branch, quantity) for branch in stage.branches)
    blocks = sum(block_total(block, quantity) for block in stage.blocks)
    return int(inner + blocks + sum(getattr(op, quantity) for op in stage.entry))


def _macs(ops: tuple[Op, ...]) -> int:
    return sum(op.macs for op in ops)
