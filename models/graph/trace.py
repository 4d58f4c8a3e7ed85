"""A captured graph with its atoms, ready to be searched and cut."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from models.graph.atoms import Atom, Dim, is_batch, leaves, places
from models.graph.capture import BATCH, sizes_of
from models.graph.rules import Tracer

aten = torch.ops.aten
SIZES_AT = {
    aten.view: 1, aten.reshape: 1, aten._unsafe_view: 1, aten.expand: 1, aten.broadcast_to: 1, aten.zeros: 0, aten.ones: 0,
    aten.full: 0, aten.empty: 0, aten.new_zeros: 1, aten.new_ones: 1, aten.new_full: 1, aten.new_empty: 1,
}  # fmt: skip
"""Where an operator has the sizes of what it gives."""
FILLED_BY_MINUS_ONE = (aten.view, aten.reshape, aten._unsafe_view)
Count = Callable[[Atom], int]


@dataclass(frozen=True)
class Traced:
    """A graph whose batch is free. `tracer` knows its nodes."""

    graph: GraphModule
    tracer: Tracer
    image: tuple[int, int, int]

    @property
    def nodes(self) -> list[Node]:
        return list(self.graph.graph.nodes)

    def dims(self, node: Node) -> list[Dim]:
        return self.tracer.of(node)

    def cut(self, kept: Mapping[Atom, Sequence[int]]) -> GraphModule:
        """The graph in which, of each of these atoms, only some members are left. Weights are copies."""
        names = {node.name: node for node in self.nodes}
        small = copy.deepcopy(self.graph)
        chosen = dict(kept)
        for target, node in _weights(self.graph).items():
            tensor = _tensor(small, target)
            for axis, dim in enumerate(self.dims(node)):
                if any(atom in chosen for atom in leaves(dim)):
                    tensor = tensor.index_select(axis, torch.tensor(places(dim, chosen)))
            _replace(small, target, tensor)
        _write_sizes(small, names, self.tracer, lambda atom: len(chosen.get(atom, range(atom.size))))
        small.recompile()
        return small


def trace(graph: GraphModule, image: tuple[int, int, int], batch: int = BATCH) -> Traced:
    """Finds the atoms of a clean graph that was captured for `batch` images, and frees its batch, in place."""
    sizes = sizes_of(graph, image, batch)
    tracer = Tracer(sizes, batch)
    for node in graph.graph.nodes:
        if node.target == aten.scaled_dot_product_attention.default and node.kwargs.get("scale") is None:
            node.update_kwarg("scale", 1 / math.sqrt(sizes[node.args[0]][-1]))  # fewer dims do not change it
        tracer.visit(node)
    _write_sizes(graph, {node.name: node for node in graph.graph.nodes}, tracer, lambda atom: atom.size)
    graph.recompile()
    return Traced(graph, tracer, image)


def _weights(graph: GraphModule) -> dict[str, Node]:
    """Tensors that a graph reads, each with one of the nodes that do."""
    return {str(node.target): node for node in graph.graph.nodes if node.op == "get_attr"}


def _tensor(graph: GraphModule, target: str) -> Tensor:
    owner, _, name = target.rpartition(".")
    found = getattr(graph.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found.detach()


def _replace(graph: GraphModule, target: str, tensor: Tensor) -> None:
    owner, _, name = target.rpartition(".")
    module = graph.get_submodule(owner)
    if isinstance(getattr(module, name), nn.Parameter):
        setattr(module, name, nn.Parameter(tensor.clone()))
    else:
        setattr(module, name, tensor.clone())


def _write_sizes(graph: GraphModule, known: Mapping[str, Node], tracer: Tracer, count: Count) -> None:
    """Puts sizes by atoms in the place of numbers, in all operators that name them; of the batch, what arrives."""
    for node in list(graph.graph.nodes):
        original = known.get(node.name)
        if node.op != "call_function" or original is None:
            continue
        packet = getattr(node.target, "overloadpacket", None)
        if packet in SIZES_AT and isinstance(tracer.sizes.get(original), tuple):
            _write_view(graph, node, original, tracer, count)
        elif packet is aten.unflatten:
            place, before = node.args[1], tracer.of(original.args[0])
            dims = tracer.of(original)
            start = place % len(before)
            end = start + len(dims) - len(before) + 1
            _set(node, 2, [-1 if is_batch(dim) else _size(dim, count) for dim in dims[start:end]])
        elif packet in (aten.layer_norm, aten.rms_norm):
            _set(node, 1, [_size(dim, count) for dim in tracer.of(original)[-len(node.args[1]) :]])
        elif packet is aten.split_with_sizes:
            place = (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)) or 0
            _set(node, 1, [_size([a for a in dims[place]], count) for dims in tracer.dims[original]])
        elif packet is aten.split and isinstance(node.args[1], int):
            place = (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)) or 0
            _set(node, 1, _size(tracer.dims[original][0][place], count))
        elif packet is aten.conv2d and len(node.args) > 6 and node.args[6] != 1:
            channels = tracer.of(original.args[0])[1]
            if node.args[6] == math.prod(atom.size for atom in channels):
                _set(node, 6, _size(channels, count))
        elif packet is aten.repeat:
            dims, before = tracer.of(original), tracer.of(original.args[0])
            before = [[] for _ in range(len(dims) - len(before))] + before
            new = is_new_batch = [is_batch(d) and not is_batch(b) for d, b in zip(dims, before, strict=True)]
            if any(is_new_batch):
                _set(node, 1, [_images(graph) if fresh else n for fresh, n in zip(new, node.args[1], strict=True)])


def _write_view(graph: GraphModule, node: Node, original: Node, tracer: Tracer, count: Count) -> None:
    packet: Any = getattr(node.target, "overloadpacket", None)
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
    _set(node, SIZES_AT[packet], sizes)


def _images(graph: GraphModule) -> Node:
    """The number of images of a run."""
    placeholder = next(node for node in graph.graph.nodes if node.op == "placeholder")
    for user in placeholder.users:
        if user.target == aten.sym_size.int:
            return cast(Node, user)
    with graph.graph.inserting_after(placeholder):
        images: Node = graph.graph.call_function(aten.sym_size.int, (placeholder, 0))
        return images


def _size(dim: Dim, count: Count) -> int:
    return math.prod(count(atom) for atom in leaves(dim))


def _set(node: Node, place: int, value: Any) -> None:
    if len(node.args) > place:
        node.update_arg(place, value)
    else:
        name = {0: "size", 1: "size", 6: "groups"}[place]
        node.update_kwarg(name, value)
