"""A dense graph in the form in which its bases can be found.

q, k and v have layers of their own, and the norms of the residual stream are folded into the layers that read them.
"""

import copy
import dataclasses
from dataclasses import dataclass

from torch.fx import GraphModule

from models.graph.fold_stream import fold_stream
from models.graph.frequency_factors import commute
from models.graph.tracing.inner_dims import InsideHeads, inside_heads
from models.graph.tracing.part_products import part_products
from models.graph.tracing.rotary_tables import part_rotary
from models.graph.tracing.stream import FixedStream, GraphStream, find_stream
from models.graph.tracing.sublayers import GraphBlock, find_blocks
from models.graph.tracing.trace import Traced, trace
from models.structure import RotatedAxis

NOT_ROTATED: dict[RotatedAxis, str] = {
    "qk": "norms or another operator work on q and k in their own basis",
    "v": "an operator works on the values in their own basis",
}
"""Why the basis inside heads is not free."""


@dataclass(frozen=True)
class Parted:
    """The graph, with its blocks, the dims inside the heads of each block, and its residual stream.

    stream: None if its basis is not free. fixed_width: why it is not.
    """

    traced: Traced
    blocks: list[GraphBlock]
    inside: list[InsideHeads]
    stream: GraphStream | None
    fixed_width: str
    whole: bool
    """Whether it has the same blocks as the graph that it was made of."""

    @property
    def rotatable(self) -> tuple[RotatedAxis, ...]:
        """The axes whose basis is free in every block."""
        if not self.whole:
            return ()
        inner: tuple[RotatedAxis, ...] = tuple(NOT_ROTATED)
        free = [axis for axis in inner if all(block.of(axis) is not None for block in self.inside)]
        return (*free, "embed") if self.stream is not None else tuple(free)


def parted(graph: GraphModule, image: tuple[int, int, int], blocks: int) -> Parted:
    """Part and fold a copy of a graph. blocks: the number of its blocks."""
    small = copy.deepcopy(graph)
    part_products(small, image)
    part_rotary(small, image)
    traced = trace(small, image)
    found, stream, reason = find_blocks(traced), None, ""
    try:
        stream = find_stream(traced, found)
    except FixedStream as error:
        reason = str(error)
    if stream is not None:
        fold_stream(traced, stream)
        traced = trace(traced.graph, image)
        found = find_blocks(traced)
        stream = find_stream(traced, found)
    inside = [inside_heads(traced, block) for block in found]
    if not commute(traced, found, [heads.qk for heads in inside]):
        inside = [dataclasses.replace(heads, qk=None) for heads in inside]
    return Parted(traced, found, inside, stream, reason, len(found) == blocks)
