"""Graphs whose outputs are not just logits.

vitfit judges a network by one of its outputs, as logits. Exported files have all outputs of the file handed in.
"""

from torch import Tensor, nn
from torch.fx import GraphModule

from models.export.signature import Signature, as_logits


class JudgedOutput(nn.Module):
    """A graph as a module with one output: the judged one, as logits."""

    def __init__(self, graph: GraphModule, signature: Signature) -> None:
        super().__init__()
        self.graph_module, self._signature = graph, signature

    def forward(self, images: Tensor) -> Tensor:
        found = self.graph_module(images)
        value: Tensor = found[self._signature.judged] if len(self._signature.outputs) > 1 else found
        return as_logits(value, self._signature.scores)


def judging(graph: GraphModule, signature: Signature) -> nn.Module:
    """Return a module that computes the judged output. A graph that computes only this is returned as it is.

    signature: the names of the outputs. The graph returns a tuple if there are several.
    """
    is_plain = len(signature.outputs) == 1 and signature.scores == "logits"
    return graph if is_plain else JudgedOutput(graph, signature)


def all_outputs(module: nn.Module) -> nn.Module:
    """Return the module that computes all outputs."""
    return module.graph_module if isinstance(module, JudgedOutput) else module
