"""Traces a captured graph: finds its atoms, so that it can be searched for blocks and cut."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import models.graph.tracing.rules  # noqa: F401  # the import registers the rules
from models.graph.tracing.atoms import Atom, Dim, fix, leaves, places
from models.graph.tracing.capture import BATCH, sizes_of, stored
from models.graph.tracing.normalize import normalise
from models.graph.tracing.shared_tables import cut_shared, part_shared
from models.graph.tracing.tracer import Tracer
from models.graph.tracing.write_sizes import write_sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class Traced:
    """A graph with a free batch size. `tracer` knows the atoms of its nodes."""

    graph: GraphModule
    tracer: Tracer
    image: tuple[int, int, int]

    @property
    def nodes(self) -> list[Node]:
        return list(self.graph.graph.nodes)

    @property
    def images(self) -> Node:
        """The input node of the graph."""
        return next(node for node in self.nodes if node.op == "placeholder")

    def dims(self, node: Node) -> list[Dim]:
        return self.tracer.of(node)

    def cut(self, kept: Mapping[Atom, Sequence[int]]) -> GraphModule:
        """Return a graph that has only the `kept` members of each of these atoms. Its weights are copies."""
        names = {node.name: node for node in self.nodes}
        small = copy.deepcopy(self.graph)
        chosen = dict(kept)
        for target, node in _weights(self.graph).items():
            tensor = stored(small, node).detach()
            for axis, dim in enumerate(self.dims(node)):
                if any(atom in chosen for atom in leaves(dim)):
                    tensor = tensor.index_select(axis, torch.tensor(places(dim, chosen)))
            _replace(small, target, tensor)
        cut_shared(small, lambda name: self.dims(names[name]), chosen)
        write_sizes(small, names, self.tracer, lambda atom: len(chosen.get(atom, range(atom.size))))
        small.recompile()
        return small


def trace(graph: GraphModule, image: tuple[int, int, int], batch: int = BATCH) -> Traced:
    """Find the atoms of a clean graph that was captured for `batch` images, and make its batch size free, in place."""
    part_shared(graph)
    sizes = sizes_of(graph, image, batch)
    normalise(graph, sizes)
    tracer = Tracer(sizes, batch)
    for node in graph.graph.nodes:
        if node.target == aten.scaled_dot_product_attention.default and node.kwargs.get("scale") is None:
            node.update_kwarg("scale", 1 / math.sqrt(sizes[node.args[0]][-1]))  # cutting dims must not change it
        tracer.visit(node)
    _fix_outputs(graph, tracer)
    write_sizes(graph, {node.name: node for node in graph.graph.nodes}, tracer, lambda atom: atom.size)
    graph.recompile()
    return Traced(graph, tracer, image)


def _fix_outputs(graph: GraphModule, tracer: Tracer) -> None:
    """Fix all dims of the outputs: a user's code relies on their sizes."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    for source in output.all_input_nodes:
        for dims in tracer.each(source):
            for dim in dims:
                fix(dim)


def _weights(graph: GraphModule) -> dict[str, Node]:
    """Return the names of the tensors that a graph reads, each with one of the nodes that read it."""
    return {str(node.target): node for node in graph.graph.nodes if node.op == "get_attr"}


def _replace(graph: GraphModule, target: str, tensor: Tensor) -> None:
    owner, _, name = target.rpartition(".")
    module = graph.get_submodule(owner)
    if isinstance(getattr(module, name), nn.Parameter):
        setattr(module, name, nn.Parameter(tensor.clone()))
    else:
        setattr(module, name, tensor.clone())
