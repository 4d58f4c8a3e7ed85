"""Parts a layer that makes q, k and v together into three layers, so that each of them has atoms of its own.

In a joint layer, q, k and v share the atom of the dims inside a head, because one reshape lays all of them out. Then
the dims of q and k can only be cut together with those of v.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from models.graph.tracing.capture import sizes_of, stored
from models.graph.tracing.layout import RESHAPES
from models.graph.tracing.tracer import argument, packet_of

aten = torch.ops.aten
LAYOUT = (*RESHAPES, aten.permute, aten.transpose, aten.contiguous, aten.clone)
PARTINGS = (aten.unbind, aten.chunk, aten.split, aten.split_with_sizes)
IMAGES = 2
"""Number of images for which the layout is followed."""


@dataclass(frozen=True)
class Part:
    """One of the tensors into which the output of a layer is parted.

    node: the tensor. rows: the outputs of the layer that it holds, in the order of `sizes`. sizes: how many there are
    along each of its dims that count outputs. order: the permutation from (leading dims of the layer, sizes) to it.
    """

    node: Node
    rows: Tensor
    sizes: tuple[int, ...]
    order: tuple[int, ...]


def part_products(graph: GraphModule, image: tuple[int, int, int]) -> None:
    """Part all joint layers of a graph, in place. A layer whose parts cannot be followed stays joint."""
    sizes = sizes_of(graph, image, IMAGES)
    for node in list(graph.graph.nodes):
        if packet_of(node) is not aten.linear or not _is_own(node):
            continue
        parts = _parts(node, sizes[node])
        biases = None if parts is None else _biases(graph, node, parts)
        if parts is not None and biases is not None:
            _write(graph, node, parts, biases, leading=sizes[node][1:-1])
    graph.graph.eliminate_dead_code()
    forget_unread(graph)
    graph.graph.lint()
    graph.recompile()


def _is_own(node: Node) -> bool:
    """Return whether a layer's weight is a stored tensor that no other node reads."""
    weight = node.args[1]
    return isinstance(weight, Node) and weight.op == "get_attr" and len(weight.users) == 1


def _parts(layer: Node, shape: tuple[int, ...]) -> list[Part] | None:
    """Follow the output of a layer to where it is parted. Return None if this is not the layout of q, k and v."""
    places = torch.arange(prod(shape)).reshape(shape)
    node = layer
    while len(node.users) == 1 and _is_layout(user := next(iter(node.users))):
        places = _run(user, places)
        node = user
    found = [(one, values) for user in node.users for one, values in _parted(user, places)]
    if len(found) != 3 or len({id(one) for one, _ in found}) < 3:
        return None
    parts = [_part(one, values, shape) for one, values in found]
    whole = [part for part in parts if part is not None]
    rows = torch.cat([part.rows for part in whole]) if len(whole) == 3 else torch.tensor([])
    if not torch.equal(rows.sort().values, torch.arange(shape[-1])):
        return None
    return whole


def _parted(user: Node, places: Tensor) -> Iterator[tuple[Node, Tensor]]:
    """Yield the tensors that a node takes out of another, each with the places of its values."""
    packet = packet_of(user)
    if packet is aten.select:
        yield user, _run(user, places)
    elif packet in PARTINGS:
        values = _run(user, places)
        for one in user.users:
            if one.target is operator.getitem:
                yield one, values[one.args[1]]


def _is_layout(node: Node) -> bool:
    return packet_of(node) in LAYOUT and len(node.all_input_nodes) == 1


def _run(node: Node, places: Tensor) -> Any:
    return node.target(places, *node.args[1:], **node.kwargs)  # type: ignore[operator]


def _part(node: Node, places: Tensor, shape: tuple[int, ...]) -> Part | None:
    """Describe a part by the places of its values in the output of the layer. None: its dims mix those of the output.

    shape: of the layer's output; the last dim counts the outputs.
    """
    leading, axes = len(shape) - 1, [_axis_of(places, dim, shape) for dim in range(places.ndim)]
    outputs = [dim for dim, axis in enumerate(axes) if axis == leading]
    others = [axes.index(axis) if axis in axes else None for axis in range(leading)]
    if None in others or len(outputs) + leading != places.ndim:
        return None
    from_part = [*(dim for dim in others if dim is not None), *outputs]
    laid = places.permute(from_part)
    sizes = tuple(places.shape[dim] for dim in outputs)
    rows = laid[(0,) * leading].flatten() % shape[-1]
    whole = torch.arange(prod(shape)).reshape(shape)[..., rows].reshape(*shape[:-1], *sizes)
    order = tuple(from_part.index(dim) for dim in range(places.ndim))
    return Part(node, rows, sizes, order) if torch.equal(whole, laid) else None


def _axis_of(places: Tensor, dim: int, shape: tuple[int, ...]) -> int:
    """Return the dim of the layer's output that changes along a dim of a part. A dim of size 1 counts outputs."""
    if places.shape[dim] == 1:
        return len(shape) - 1
    first, second = (places.select(dim, i).flatten()[0] for i in (0, 1))
    changed = [a != b for a, b in zip(*(torch.unravel_index(one, shape) for one in (first, second)), strict=True)]
    return changed.index(True)


def _biases(graph: GraphModule, layer: Node, parts: Sequence[Part]) -> list[Any] | None:
    """Return the bias of each part: None, a tensor, or a node. Return None if the bias cannot be parted."""
    bias = argument(layer, 2, "bias")
    if bias is None:
        return [None] * len(parts)
    assert isinstance(bias, Node)
    if bias.op == "get_attr":
        return [stored(graph, bias)[part.rows] for part in parts] if len(bias.users) == 1 else None
    if packet_of(bias) is not aten.cat:
        return None
    found, start = {}, 0
    for piece in bias.args[0]:  # type: ignore[union-attr]
        count = len(stored(graph, piece)) if isinstance(piece, Node) and piece.op == "get_attr" else 0
        found[tuple(range(start, start + count))] = piece
        start += count
    pieces = [found.get(tuple(part.rows.tolist())) for part in parts]
    if any(piece is None for piece in pieces):
        return None
    return [None if _is_zero(stored(graph, piece)) else piece for piece in pieces]


def _is_zero(bias: Tensor) -> bool:
    """Return whether a bias is a constant 0, as that of the keys of BEiT."""
    return not isinstance(bias, nn.Parameter) and not bias.any()


def _write(
    graph: GraphModule, layer: Node, parts: Sequence[Part], biases: Sequence[Any], *, leading: Sequence[int]
) -> None:
    """Replace a layer by one layer for each part, in place.

    leading: sizes of the dims of its output between the images and the outputs.
    """
    weight = stored(graph, layer.args[1]).detach()
    for place, (part, bias) in enumerate(zip(parts, biases, strict=True)):
        with graph.graph.inserting_before(layer):
            made = [layer.args[0], _stored_as(graph, layer.args[1], f"part{place}", weight[part.rows])]
            if isinstance(bias, Tensor):
                old = argument(layer, 2, "bias")
                made.append(_stored_as(graph, old, f"part{place}", bias.detach()))
            elif bias is not None:
                made.append(graph.graph.get_attr(str(bias.target)))
            product = graph.graph.call_function(aten.linear.default, tuple(made))
            laid = graph.graph.call_function(aten.reshape.default, (product, [-1, *leading, *part.sizes]))
            turned = graph.graph.call_function(aten.permute.default, (laid, list(part.order)))
        part.node.replace_all_uses_with(turned)


def _stored_as(graph: GraphModule, node: Any, suffix: str, value: Tensor) -> Node:
    """Store a tensor beside another one, and return a node that reads it."""
    owner, _, name = str(node.target).rpartition(".")
    kept: Tensor = nn.Parameter(value.clone()) if isinstance(stored(graph, node), nn.Parameter) else value.clone()
    place = graph.get_submodule(owner)
    if isinstance(kept, nn.Parameter):
        place.register_parameter(f"{name}_{suffix}", kept)
    else:
        place.register_buffer(f"{name}_{suffix}", kept)
    return graph.graph.get_attr(f"{owner}.{name}_{suffix}" if owner else f"{name}_{suffix}")


def forget_unread(graph: GraphModule) -> None:
    """Delete the parameters and buffers that no node reads, in place."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in [*graph.named_parameters(), *graph.named_buffers()] if name not in read]:
        owner, _, own = name.rpartition(".")
        delattr(graph.get_submodule(owner), own)
