"""Handles tables that several layers read. The table stays complete, and each layer selects the rows of its members.

Blocks can add one common table to their logits. Without this module, the heads of all these blocks would be one set
of heads, and could not be cut per block.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from models.graph.tracing.atoms import Atom, Dims, fix, is_batch, leaves, places, size_of
from models.graph.tracing.capture import stored
from models.graph.tracing.tracer import Tracer, is_pointwise, packet_of, rule

aten = torch.ops.aten


def own(table: Tensor) -> Tensor:
    """Return the table.

    In a graph, this call marks the place where one layer reads a table that other layers read too.
    """
    return table


@rule(own)
def _own(tracer: Tracer, node: Node) -> Dims:
    (source,) = node.all_input_nodes
    dims = tracer.of(source)
    for dim in dims:
        fix(dim)
    return [dim if is_batch(dim) else [Atom(size_of(dim))] for dim in dims]


def part_shared(graph: GraphModule) -> None:
    """Give each layer its own read of a shared table, in place.

    Idempotent: a read that is already marked is left alone.
    Only a tensor that is added, multiplied or used as an attention mask is a table. The weights of a layer that is
    used twice stay shared.
    """
    targets = _parameters_behind(graph)
    readers: dict[str, set[Node]] = defaultdict(set)
    for node, mine in targets.items():
        for user in node.users:
            if user not in targets:
                for target in mine:
                    readers[target].add(user)
    for user in [node for node in graph.graph.nodes if node not in targets and _adds(node)]:
        for node in user.all_input_nodes:
            if node.target is not own and any(len(readers[target]) > 1 for target in targets.get(node, ())):
                with graph.graph.inserting_before(user):
                    user.replace_input_with(node, graph.graph.call_function(own, (node,)))
    graph.recompile()


def cut_shared(graph: GraphModule, dims: Callable[[str], Dims], kept: Mapping[Atom, Sequence[int]]) -> None:
    """Let each layer select the rows of its kept members from a shared table, in place.

    dims: returns the dims of a node, by its name.
    """
    chosen = dict(kept)
    for node in list(graph.graph.nodes):
        if node.target is not own:
            continue
        for axis, dim in enumerate(dims(node.name)):
            if not any(atom in chosen for atom in leaves(dim)):
                continue
            name = f"{node.name}_members_{axis}"
            graph.register_buffer(name, torch.tensor(places(dim, chosen)))
            with graph.graph.inserting_before(node):
                index = graph.graph.get_attr(name)
                read = graph.graph.call_function(aten.index_select.default, (node.args[0], axis, index))
            node.update_arg(0, read)


def _parameters_behind(graph: GraphModule) -> dict[Node, set[str]]:
    """Return, for each node that is the same for all images, the names of the parameters from which it is computed."""
    found: dict[Node, set[str]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            found[node] = {str(node.target)} if isinstance(stored(graph, node), nn.Parameter) else set()
        elif node.op == "call_function" and all(source in found for source in node.all_input_nodes):
            found[node] = set().union(*(found[source] for source in node.all_input_nodes))
    return found


def _adds(node: Node) -> bool:
    return is_pointwise(node) or packet_of(node) is aten.scaled_dot_product_attention
