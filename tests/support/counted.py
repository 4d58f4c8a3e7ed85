"""Comparison of a structure's counts with torch's own counts."""

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from models.networks.network import Network


def differs(network: Network, module: nn.Module) -> list[str]:
    """Return the differences between a structure and its module, by torch's own counts."""
    image = torch.zeros(1, *network.structure.image, device=next(module.parameters()).device)
    module.requires_grad_(False)  # the counter then follows modules without their gradients
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(image)
    module.requires_grad_(True)
    macs = counter.get_total_flops() // 2 - macs_of_parameters_alone(network.module)
    params = sum(parameter.numel() for parameter in module.parameters())
    reasons = []
    if macs != network.structure.macs:
        reasons.append(f"MACs {network.structure.macs / macs:.4f} of torch's count")
    if params != network.structure.params:
        reasons.append(f"parameters {network.structure.params / params:.4f} of the model's")
    return reasons


def macs_of_parameters_alone(module: nn.Module) -> int:
    """Return the MACs of products of parameters with each other.

    No file computes them for an image, because ONNX Runtime computes them once, at load.
    """
    if not isinstance(module, GraphModule):
        return 0
    module.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _Still(module).run(None)
    module.requires_grad_(True)
    return int(counter.get_total_flops()) // 2


class _Still(Interpreter):
    """An interpreter that runs only the nodes that do not depend on the image."""

    def run_node(self, n: Node) -> Any:
        if n.target == "size":
            return 1
        moves = n.op in ("placeholder", "output") or any(self.env.get(source) is None for source in n.all_input_nodes)
        return None if moves else super().run_node(n)
