"""Runs a graph, and shows the values in front of some of its nodes."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

Values = Mapping[Node, Any]
"""The values of the nodes that have run."""


class Watcher(Interpreter):
    """An interpreter that calls a function with all values before each watched node."""

    def __init__(self, graph: GraphModule, watched: Mapping[Node, Callable[[Values], None]]) -> None:
        super().__init__(graph)
        self._watched = watched

    def run_node(self, n: Node) -> Any:
        if n in self._watched:
            self._watched[n](self.env)
        return super().run_node(n)


def layer_inputs(values: Values, layer: Node, columns: Tensor) -> Tensor:
    """Return these columns of the inputs of a layer, (..., number of columns)."""
    x: Tensor = values[layer.all_input_nodes[0]]
    return (x.movedim(1, -1) if "conv" in str(layer.target) else x)[..., columns]
