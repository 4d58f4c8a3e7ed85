"""The shape of a network without its weights. Standard library only.

A `Structure` has stages, a stage has blocks, and a block has operations (`Op`). Every cost (MACs, parameters, bytes,
milliseconds, FPGA cycles) is a sum over `Op`s, so a plan is priced without touching a tensor. Sizes are per image; a
price multiplies `rows` by the batch size.

Hierarchical networks are described in the same way. A stage has entry operations (patch merging, pooling) and may have
parallel branches. Its blocks may use windows or reduced keys. The stage also says whether its tokens may be removed.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from models.record import Record, later
from models.structure.block import Block, Quantity, block_total
from models.structure.op import Op, ops_in

Axis = Literal["embed", "inputs", "qk", "v", "halves"]
"""Axes that cannot be cut in some architectures: embedding dims, inputs of single layers, q/k or v dims inside heads,
and one sublayer of a block alone ("halves"). Heads, neurons and complete blocks can be removed everywhere; for tokens,
see `Stage`."""


RotatedAxis = Literal["qk", "v", "embed"]
"""Axes whose members can be directions of a rotated basis (models/rotation)."""


@dataclass(frozen=True)
class Stage(Record):
    """Blocks that share a token grid. `free_tokens`: no later layer needs the grid, so tokens may be removed."""

    name: str
    blocks: tuple[Block, ...]
    free_tokens: bool
    entry: tuple[Op, ...] = ()
    branches: tuple["Stage", ...] = ()
    follows: bool = later(False)
    """True if this stage continues with the tokens that the previous stage outputs, whatever their number."""
    in_graph: bool = later(False)
    """True if the tokens are removed inside a graph (models/graph/tokens/cut.py). This is only possible in the middle
    of a block, with the tokens ranked by the attention of that block."""
    stream: int | None = later(0)
    """The number of the residual stream that the blocks of this stage read and write. None: its width is fixed. In a
    plain network, all stages have one stream."""

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
    """Number of classes. 0: the network has no classifier, and its outputs are features."""
    prefix: int
    """Number of class, distillation and register tokens. They come first and are never removed."""
    has_class_token: bool
    stem: tuple[Op, ...]
    stages: tuple[Stage, ...]
    tail: tuple[Op, ...]
    fixed: tuple[Axis, ...] = later(())
    """Axes that cannot be cut in this architecture. If "embed" is among them, every width is fixed, and stages may have
    different widths."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for stage in self.stages for block in stage.blocks)

    @property
    def width(self) -> int:
        """Embedding width of the first block. Other stages may have another width."""
        return self.blocks[0].width

    @property
    def tokens(self) -> int:
        """Token count of the first block, prefix tokens included. Other stages may have another count."""
        return self.blocks[0].tokens

    @property
    def first_blocks(self) -> tuple[int, ...]:
        """Index of the first block of each stage. There, the token scores of earlier blocks are no longer valid."""
        sizes = [len(stage.blocks) for stage in self.stages]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    @property
    def stream_dims(self) -> tuple[range, ...]:
        """The numbers that a plan gives to the embedding dims of each residual stream. Empty if all widths are fixed.

        The dims of all streams are counted in one row.
        """
        widths: dict[int, int] = {}
        for stage in self.stages:
            if stage.stream is not None and stage.blocks and "embed" not in self.fixed:
                widths.setdefault(stage.stream, stage.blocks[0].width)
        ends = list(itertools.accumulate(widths[number] for number in sorted(widths)))
        return tuple(itertools.starmap(range, itertools.pairwise([0, *ends])))

    @property
    def has_widths_of_stages(self) -> bool:
        """Whether stages have embedding widths of their own, of which some can be cut."""
        return "embed" not in self.fixed and any(stage.stream != 0 for stage in self.stages)

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
        """Return the same structure with every operation in one precision."""
        stages = tuple(_stage_in(stage, precision) for stage in self.stages)
        return dataclasses.replace(
            self, stem=ops_in(self.stem, precision), stages=stages, tail=ops_in(self.tail, precision)
        )

    @property
    def block_macs(self) -> int:
        """MACs of the blocks only. Most papers, MDC among them, count MACs in this way."""
        return sum(_stage_sum(stage, "macs") for stage in self.stages)

    @property
    def params(self) -> int:
        ends = sum(op.params for op in self.stem + self.tail)
        return ends + sum(_stage_sum(stage, "params") for stage in self.stages)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in a file."""
        ends = sum(op.weight_bytes for op in self.stem + self.tail)
        return ends + sum(_stage_sum(stage, "weight_bytes") for stage in self.stages)


def _stage_in(stage: Stage, precision: str) -> Stage:
    return dataclasses.replace(
        stage,
        entry=ops_in(stage.entry, precision),
        blocks=tuple(dataclasses.replace(block, precision=precision, exact=()) for block in stage.blocks),
        branches=tuple(_stage_in(branch, precision) for branch in stage.branches),
    )


def _stage_sum(stage: Stage, quantity: Quantity) -> int:
    inner = sum(_stage_sum(branch, quantity) for branch in stage.branches)
    blocks = sum(block_total(block, quantity) for block in stage.blocks)
    return int(inner + blocks + sum(getattr(op, quantity) for op in stage.entry))


def _macs(ops: tuple[Op, ...]) -> int:
    return sum(op.macs for op in ops)
