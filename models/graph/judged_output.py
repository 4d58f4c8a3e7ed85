"""Graphs whose outputs are not just logits.

vitfit judges a network by one of its outputs, as logits. Exported files have all outputs of the file handed in.
"""

from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from models.export.signature import Signature, as_logits


class JudgedOutput(nn.Module):
    """A graph as a module with one output: the judged one, as logits."""

    def __init__(self, graph: GraphModule, signature: Signature, several: bool) -> None:
        super().__init__()
        self.graph_module, self._several = graph, several
        self._place, self._scores = signature.judged, signature.scores

    def forward(self, images: Tensor) -> Tensor:
        found = self.graph_module(images)
        value: Tensor = found[self._place] if self._several else found
        return as_logits(value, self._scores)


def judging(graph: GraphModule, signature: Signature) -> nn.Module:
    """Return a module that computes the judged output. A graph that computes only this is returned as it is."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    values: Any = output.args[0]
    several = isinstance(values, tuple | list) and len(values) > 1
    return JudgedOutput(graph, signature, several) if several or signature.scores != "logits" else graph


def all_outputs(module: nn.Module) -> nn.Module:
    """Return the module that computes all outputs."""
    return module.graph_module if isinstance(module, JudgedOutput) else module
