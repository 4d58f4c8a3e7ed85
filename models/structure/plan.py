"""Plans: the exact list of members (heads, dims, neurons, blocks) that stay of a network. Standard library only.

All indices refer to the original network, so a plan is read beside that network and two plans can be compared directly.
`plan.apply_to(structure)` computes sizes only. `models.pruning.prune` does the same to the weights, and a test checks
that both agree.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import InvalidRequest
from models.record import Record, later
from models.structure.block import Block
from models.structure.block_plan import BlockPlan, PlanAxis, apply_block, only_axis, whole_block, with_selector
from models.structure.op import Op, Precision
from models.structure.plan_checks import (
    check_block,
    check_embed,
    check_exact,
    check_fixed,
    check_in_graph,
    check_scores,
)
from models.structure.structure import RotatedAxis, Stage, Structure


@dataclass(frozen=True)
class Plan(Record):
    """Which members of a network stay.

    embed: the embedding dims that stay, the same in every block of a residual stream. A network with stages has several
    streams, whose dims are counted in one row (`Structure.stream_dims`). Empty if the width is fixed: all dims stay.
    precision: "int8" quantises the linear layers of all blocks, except those in `exact`. "fp16" applies to the whole
    network.
    """

    embed: tuple[int, ...]
    blocks: tuple[BlockPlan, ...]
    precision: Precision = "fp32"
    rotated: tuple[RotatedAxis, ...] = later(())
    """The axes whose indices count directions of a rotated basis (models/rotation), the most important ones first. The
    indices of all other axes count members of the original network."""

    def apply_to(self, structure: Structure) -> Structure:
        """Return the structure of the pruned network.

        Raises: InvalidRequest when the plan does not fit (unknown member, unequal dims inside a block, no width left).
        """
        check(self, structure)
        return self.shape_of(structure)

    def shape_of(self, structure: Structure) -> Structure:
        """Same as `apply_to` without its checks. It reads only lengths, so thousands of plans can be priced quickly."""
        originals, firsts, kept, tokens = structure.blocks, structure.first_blocks, [], structure.tokens
        stage, patches = -1, structure.tokens - structure.prefix
        widths = self._widths(structure)
        for plan in self.blocks:
            original = originals[plan.source]
            if (now := bisect.bisect(firsts, plan.source)) != stage:
                stage = now
                if not structure.stages[stage - 1].follows:
                    tokens, patches = original.tokens, original.tokens - structure.prefix
            stream = structure.stages[stage - 1].stream
            width = original.width if stream is None or not widths else widths[stream]
            block = apply_block(plan, original, width, tokens, prefix=structure.prefix, precision=self.precision)
            if plan.tokens is not None:
                block = with_selector(block, plan.tokens, original, patches)
                patches = plan.tokens.kept
            tokens = block.tokens_out
            kept.append(block)
        small = dataclasses.replace(
            structure,
            stem=tuple(_resize(op, widths, structure.tokens) for op in structure.stem),
            stages=_regroup(structure, self, kept, widths),
            tail=tuple(_resize(op, widths, tokens) for op in structure.tail),
        )
        return small.in_precision("fp16") if self.precision == "fp16" else small

    def embed_of_stages(self, structure: Structure) -> tuple[Sequence[int], ...]:
        """Return the embedding dims that stay in each stage, counted from 0 in each stage."""
        dims = structure.stream_dims
        found: list[Sequence[int]] = []
        for stage in structure.stages:
            if stage.stream is None or not self.embed or not dims:
                found.append(range(stage.blocks[0].width if stage.blocks else 0))
            elif len(dims) == 1:
                found.append(self.embed)
            else:
                mine = dims[stage.stream]
                found.append(tuple(dim - mine.start for dim in self.embed if dim in mine))
        return tuple(found)

    def _widths(self, structure: Structure) -> tuple[int, ...]:
        """Return the width of each stream. Empty: all widths stay."""
        dims = structure.stream_dims
        if not self.embed or len(dims) < 2:
            return (len(self.embed),) if self.embed and dims else ()
        return tuple(sum(dim in mine for dim in self.embed) for mine in dims)

    def only(self, axis: PlanAxis, structure: Structure) -> "Plan":
        """Return the part of this plan that concerns one axis, with everything else as in the original.

        It is used to report the savings of each axis.
        """
        dense = identity(structure)
        blocks = []
        for plan in self.blocks if axis == "blocks" else dense.blocks:
            mine = next((b for b in self.blocks if b.source == plan.source), None)
            blocks.append(only_axis(axis, dense.blocks[plan.source], mine))
        precision: Precision = self.precision if axis == "precision" else "fp32"
        return Plan(self.embed if axis == "embed" else dense.embed, tuple(blocks), precision)


def identity(structure: Structure) -> Plan:
    """Return the plan that removes nothing."""
    dims = structure.stream_dims
    return Plan(
        tuple(range(dims[-1].stop if dims else 0)), tuple(whole_block(i, b) for i, b in enumerate(structure.blocks))
    )


def check(plan: Plan, structure: Structure) -> None:
    """Check that a plan fits a structure.

    Raises: InvalidRequest that names the block, the value and what is allowed.
    """
    check_embed(plan.embed, structure)
    embeds = plan.embed_of_stages(structure)
    if not plan.blocks:
        raise InvalidRequest("The plan keeps no blocks. It must keep at least one block. Add a block.")
    originals, patches = structure.blocks, structure.tokens - structure.prefix
    firsts, stage = structure.first_blocks, -1
    free = [stage.free_tokens for stage in structure.stages for _ in stage.blocks]
    for block in plan.blocks:
        if not 0 <= block.source < len(originals):
            raise InvalidRequest(
                f"The plan names block {block.source}, which does not exist. The network has the blocks 0 to"
                f" {len(originals) - 1}. Use one of them."
            )
        if (now := bisect.bisect(firsts, block.source)) != stage:
            stage = now
            if not structure.stages[stage - 1].follows:
                patches = originals[block.source].tokens - structure.prefix
        if block.tokens is not None and not free[block.source]:
            raise InvalidRequest(
                f"The plan removes tokens in block {originals[block.source].name}, but a later layer needs their grid."
                " The plan may remove tokens only in these blocks:"
                f" {', '.join(str(i) for i, f in enumerate(free) if f) or 'none'}. Keep all tokens in the other"
                " blocks."
            )
        if block.tokens is not None and structure.stages[stage - 1].in_graph:
            check_in_graph(block.tokens, originals[block.source].name)
        check_fixed(block, originals[block.source], structure.fixed)
        check_exact(block, originals[block.source].name, plan.precision)
        patches = check_block(block, originals[block.source], embeds[stage - 1], patches)
    check_scores(plan.blocks, firsts)
    sources = [block.source for block in plan.blocks]
    if sources != sorted(set(sources)):
        raise InvalidRequest(
            f"The plan lists the blocks {sources}. They must be in the order of the network, and each block may appear"
            " once. Sort the blocks and remove repetitions."
        )


def _resize(op: Op, widths: Sequence[int], tokens: int) -> Op:
    op = op.of_width(widths[op.stream]) if widths else op
    return dataclasses.replace(op, rows=tokens) if op.rows_are_tokens else op


def _regroup(structure: Structure, plan: Plan, blocks: list[Block], widths: Sequence[int]) -> tuple[Stage, ...]:
    by_source = {p.source: b for p, b in zip(plan.blocks, blocks, strict=True)}
    stages, first = [], 0
    for stage in structure.stages:
        members = tuple(by_source[i] for i in range(first, first + len(stage.blocks)) if i in by_source)
        entry = tuple(op.of_width(widths[op.stream]) for op in stage.entry) if widths else stage.entry
        stages.append(dataclasses.replace(stage, blocks=members, entry=entry))
        first += len(stage.blocks)
    return tuple(stages)
