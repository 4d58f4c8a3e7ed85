"""Recomputes the sizes that a graph states as numbers from the atoms of which they consist.

The batch size is taken from the input at run time.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

from models.graph.tracing.atoms import Atom, Dim, is_batch, leaves, size_of
from models.graph.tracing.normalize import TO_THE_END
from models.graph.tracing.tracer import METHODS, Tracer, argument, numbers

aten = torch.ops.aten
SIZES_AT = {
    aten.reshape: 1, aten._unsafe_view: 1, aten.expand: 1, aten.broadcast_to: 1, aten.zeros: 0, aten.ones: 0,
    aten.full: 0, aten.empty: 0, aten.new_zeros: 1, aten.new_ones: 1, aten.new_full: 1, aten.new_empty: 1,
}  # fmt: skip
"""The position of the argument that states the output sizes, by operator."""
FILLED_BY_MINUS_ONE = (aten.reshape, aten._unsafe_view)
Count = Callable[[Atom], int]


def write_sizes(graph: GraphModule, known: Mapping[str, Node], tracer: Tracer, count: Count) -> None:
    """Rewrite the sizes that a graph states, in place.

    known: the nodes that `tracer` has visited, by name.
    count: returns the number of members that an atom has now.
    """
    for node in list(graph.graph.nodes):
        original = known.get(node.name)
        packet = METHODS.get(node.target) if node.op == "call_method" else getattr(node.target, "overloadpacket", None)
        if original is None or packet is None:
            continue
        if packet in SIZES_AT and isinstance(tracer.sizes.get(original), tuple):
            _view(graph, node, original, tracer, count=count)
        elif packet is aten.repeat:
            _repeat(graph, node, original, tracer)
        elif packet in (aten.layer_norm, aten.rms_norm):
            normed = len(cast(Any, node.args[1]))
            _set(node, 1, [_size(dim, count) for dim in tracer.of(original)[-normed:]])
        elif packet is aten.split_with_sizes:
            place = argument(node, 2, "dim", 0)
            _set(node, 1, [_size(dims[place], count) for dims in tracer.dims[original]])
        elif packet is aten.split and isinstance(node.args[1], int):
            _set(node, 1, _size(tracer.dims[original][0][argument(node, 2, "dim", 0)], count))
        elif packet is aten.slice:
            _slice(node, original, tracer, count)
        elif packet is aten.conv2d and argument(node, 6, "groups", 1) != 1:
            channels = tracer.of(original.args[0])[1]
            if argument(node, 6, "groups") == math.prod(atom.size for atom in channels):
                _set(node, 6, _size(channels, count))


def _slice(node: Node, original: Node, tracer: Tracer, count: Count) -> None:
    """Rewrite the bounds of a slice that takes one of several equal parts, so that it still takes the same part.

    A slice of every second member ends at the end of the dim, however long it is.
    """
    _, place, before, _, step = cast(Any, original.args)
    left = tracer.of(original)[place]
    old, new = size_of(left), _size(left, count)
    if new != old and step != 1:
        node.update_arg(3, TO_THE_END)
    elif new != old:
        start = before // old * new
        node.update_arg(2, start)
        node.update_arg(3, start + new)


def _view(graph: GraphModule, node: Node, original: Node, tracer: Tracer, *, count: Count) -> None:
    packet = METHODS.get(cast(str, node.target)) or getattr(node.target, "overloadpacket", None)
    dims = tracer.of(original)
    sizes: list[Any] = [_size(dim, count) for dim in dims]
    for place, dim in enumerate(dims):
        if not is_batch(dim):
            continue
        if packet in FILLED_BY_MINUS_ONE:
            sizes[place] = -1
        elif packet in (aten.expand, aten.broadcast_to):
            before = tracer.of(original.args[0])
            offset = place - (len(dims) - len(before))
            sizes[place] = -1 if offset >= 0 and is_batch(before[offset]) else _images(graph)
        else:
            sizes[place] = _images(graph)
    if packet in (aten.expand, aten.broadcast_to):
        _as_method(node, "expand", sizes)
    else:
        _set(node, SIZES_AT[packet], sizes)  # type: ignore[index]


def write_length(node: Node, place: int, length: int) -> None:
    """Set the size of one dim of a node's output, in place, if the node states this size as a number.

    place: the dim, which counts tokens.
    length: its new size. A slice along this dim is extended to the end of the dim instead.
    """
    packet = METHODS.get(node.target) if node.op == "call_method" else getattr(node.target, "overloadpacket", None)
    if node.op == "call_method" and packet is aten.expand:
        if node.args[1 + place] != -1:
            node.update_arg(1 + place, length)
    elif packet in SIZES_AT:
        sizes = list(argument(node, SIZES_AT[packet], "size"))
        if sizes[place] != -1:
            sizes[place] = length
            _set(node, SIZES_AT[packet], sizes)
    elif packet is aten.slice and node.args[1] == place:
        node.update_arg(3, TO_THE_END)


def write_last_part(node: Node, total: int) -> None:
    """Set the size of the last part of a `split_with_sizes`, in place, so that the sizes add up to `total`."""
    *others, _ = argument(node, 1, "split_sizes")
    _set(node, 1, [*others, total - sum(others)])


def _repeat(graph: GraphModule, node: Node, original: Node, tracer: Tracer) -> None:
    dims, before = tracer.of(original), tracer.of(original.args[0])
    before = [[] for _ in range(len(dims) - len(before))] + before
    times = numbers(node)
    for place, (dim, old) in enumerate(zip(dims, before, strict=True)):
        if is_batch(dim) and not is_batch(old):
            times[place] = _images(graph)
    if any(isinstance(time, Node) for time in times):
        _as_method(node, "repeat", times)


def _as_method(node: Node, name: str, numbers: list[Any]) -> None:
    node.op, node.target = "call_method", name
    node.args, node.kwargs = (node.args[0], *numbers), {}


def _images(graph: GraphModule) -> Node:
    """Return a node that gives the number of images at run time. It is added if the graph has none."""
    placeholder = next(node for node in graph.graph.nodes if node.op == "placeholder")
    for user in placeholder.users:
        if user.op == "call_method" and user.target == "size":
            return cast(Node, user)
    with graph.graph.inserting_after(placeholder):
        images: Node = graph.graph.call_method("size", (placeholder, 0))
        return images


def _size(dim: Dim, count: Count) -> int:
    return math.prod(count(atom) for atom in leaves(dim))


def _set(node: Node, place: int, value: Any) -> None:
    if len(node.args) > place:
        node.update_arg(place, value)
    else:
        node.update_kwarg({0: "size", 1: "size", 6: "groups"}[place], value)
