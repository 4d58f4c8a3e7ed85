"""Gives each layer its own read of a table that is no weight, such as the angles of rotary positions.

All blocks multiply q and k by the same table. Without this module, their q/k dims would be one set of dims, and could
not be cut per block.
"""

import torch
from torch.fx import GraphModule, Node

from models.graph.tracing.capture import sizes_of
from models.graph.tracing.shared_tables import own
from models.graph.tracing.tracer import packet_of

aten = torch.ops.aten
IMAGES = 2
"""Number of images for which the sizes are found."""


def part_rotary(graph: GraphModule, image: tuple[int, int, int]) -> None:
    """Mark each read of a table by a product, in place.

    A table has values for at least two tokens and two dims, and does not depend on the images.
    """
    sizes, constant = sizes_of(graph, image, IMAGES), set[Node]()
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" or (
            node.op == "call_function" and all(source in constant for source in node.all_input_nodes)
        ):
            constant.add(node)
        elif packet_of(node) is aten.mul:
            for table in node.all_input_nodes:
                if table in constant and table.target is not own and _is_table(sizes.get(table)):
                    with graph.graph.inserting_before(node):
                        node.replace_input_with(table, graph.graph.call_function(own, (table,)))
    graph.recompile()


def _is_table(size: object) -> bool:
    return isinstance(size, tuple) and len(size) > 1 and min(size[-2:]) > 1
