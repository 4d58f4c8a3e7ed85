"""Graphs with several outputs. vitfit judges a network by one of them, and exported files have all of them."""

from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule


class JudgedOutput(nn.Module):
    """A graph with several outputs, as a module with one of them."""

    def __init__(self, graph: GraphModule, place: int) -> None:
        super().__init__()
        self.graph_module, self._place = graph, place

    def forward(self, images: Tensor) -> Tensor:
        found: tuple[Tensor, ...] = self.graph_module(images)
        return found[self._place]


def judging(graph: GraphModule, place: int) -> nn.Module:
    """Return a module that computes the output at this place. A graph with a single output is returned as it is."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    values: Any = output.args[0]
    several = isinstance(values, tuple | list) and len(values) > 1
    return JudgedOutput(graph, place) if several else graph


def all_outputs(module: nn.Module) -> nn.Module:
    """Return the module that computes all outputs."""
    return module.graph_module if isinstance(module, JudgedOutput) else module
