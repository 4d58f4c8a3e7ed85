"""Folds the norms and layer scales of a graph's residual stream into the layers beside them, so that its basis is free.

The graph computes the same as before (models/rotation/fold.py does it for plain networks).
"""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from models.graph.tracing.capture import stored
from models.graph.tracing.part_products import forget_unread
from models.graph.tracing.stream import GraphStream
from models.graph.tracing.trace import Traced
from models.graph.tracing.tracer import argument, packet_of

aten = torch.ops.aten


def fold_stream(traced: Traced, stream: GraphStream) -> None:
    """Fold norms and layer scales, in place. The graph must be traced again afterwards."""
    graph = traced.graph
    for scale in stream.scales:
        gamma = stored(graph, scale.gamma).detach().double().flatten()
        for node in scale.written:
            _multiply(traced, stream, node, gamma)
        source = next(one for one in scale.node.all_input_nodes if one is not scale.gamma)
        scale.node.replace_all_uses_with(source)
        graph.graph.erase_node(scale.node)
    for norm, readers in stream.norms.items():
        weight, bias = (argument(norm, place, name) for place, name in ((2, "weight"), (3, "bias")))
        size = stream.atom.size
        factor = torch.ones(size).double() if weight is None else stored(graph, weight).detach().double()
        shift = torch.zeros(size).double() if bias is None else stored(graph, bias).detach().double()
        for reader in readers:
            if shift.any():
                _add(graph, reader, _product(graph, reader) @ shift)
            _multiply(traced, stream, reader.args[1], factor)  # type: ignore[arg-type]
        with graph.graph.inserting_before(norm):
            ones = store(graph, f"{norm.name}_weight", torch.ones(size).to(_like(graph)))
        norm.args = (norm.args[0], norm.args[1], ones, None, argument(norm, 4, "eps", 1e-5))
        norm.kwargs = {}
    graph.graph.eliminate_dead_code()
    forget_unread(graph)
    graph.graph.lint()
    graph.recompile()


def store(graph: GraphModule, name: str, value: Tensor) -> Node:
    """Store a parameter in a graph, and return a node that reads it."""
    graph.register_parameter(name, nn.Parameter(value))
    return graph.graph.get_attr(name)


def _like(graph: GraphModule) -> Tensor:
    return next(graph.parameters()).detach()


def _product(graph: GraphModule, reader: Node) -> Tensor:
    """Return the weight of a reader, (outputs, D), float64."""
    weight = stored(graph, reader.args[1]).detach().double()
    return weight if packet_of(reader) is aten.linear else weight.T


def _multiply(traced: Traced, stream: GraphStream, node: Node, factor: Tensor) -> None:
    """Multiply a stored tensor by a factor (D,) along the dims of the stream, in place."""
    tensor = stored(traced.graph, node)
    axis = stream_axis(traced, stream, node)
    shape = [-1 if place == axis else 1 for place in range(tensor.ndim)]
    with torch.no_grad():
        tensor.copy_(tensor.double() * factor.reshape(shape))


def stream_axis(traced: Traced, stream: GraphStream, node: Node) -> int:
    """Return which axis of a stored tensor has the dims of the stream."""
    return next(axis for axis, dim in enumerate(traced.dims(node)) if stream.atom in dim)


def _add(graph: GraphModule, reader: Node, shift: Tensor) -> None:
    """Add a constant (outputs,) to what a reader gives, in place."""
    if packet_of(reader) is not aten.linear:
        with graph.graph.inserting_after(reader):
            made = store(graph, f"{reader.name}_shift", shift.to(_like(graph)))
        with graph.graph.inserting_after(made):
            moved = graph.graph.call_function(aten.add.Tensor, (reader, made))
        reader.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)
        return
    bias = argument(reader, 2, "bias")
    old = None if bias is None else stored(graph, bias)
    if old is not None and sum(node.target == bias.target for node in graph.graph.nodes) == 1:
        with torch.no_grad():
            old.copy_(old.double() + shift)
        return
    with graph.graph.inserting_before(reader):
        whole = shift if old is None else old.detach().double() + shift
        made = store(graph, f"{reader.name}_bias", whole.to(_like(graph)))
    reader.args, reader.kwargs = (*reader.args[:2], made), {}
