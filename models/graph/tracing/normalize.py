"""Rewrites operators that can be written in several ways into one form, so that the rules need not know all of them."""

import torch
from torch.fx import GraphModule, Node

from models.graph.tracing.tracer import argument

aten = torch.ops.aten
TO_THE_END = 2**63 - 1


def normalise(graph: GraphModule, shapes: dict[Node, object]) -> None:
    """Rewrite the operators of a graph in place.

    `narrow` becomes `slice`, slices count from the front, `unflatten` and `view` become `reshape`.
    shapes: the shape of each node.
    """
    for node in graph.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet is aten.narrow:
            dim, start, length = (argument(node, i, name) for i, name in enumerate(("dim", "start", "length"), 1))
            _slice(node, shapes, dim, start, end=start + length if start + length else None, step=1)
        elif packet is aten.slice:
            found = (argument(node, i, name) for i, name in enumerate(("dim", "start", "end", "step"), 1))
            dim, start, end, step = found
            _slice(node, shapes, dim or 0, start or 0, end=end, step=step or 1)
        elif packet is aten.unflatten or node.target is aten.view.default:
            node.target = aten.reshape.default
            node.args, node.kwargs = (node.args[0], list(shapes[node])), {}  # type: ignore[call-overload]


def _slice(node: Node, shapes: dict[Node, object], dim: int, start: int, *, end: int | None, step: int) -> None:
    source = shapes[node.args[0]]  # type: ignore[index]
    assert isinstance(source, tuple)
    dim %= len(source)
    size = source[dim]
    start = max(0, start + size if start < 0 else start)
    end = size if end is None else end + size if end < 0 else end
    node.target = aten.slice.Tensor
    node.args, node.kwargs = (node.args[0], dim, start, TO_THE_END if end >= size else end, step), {}
