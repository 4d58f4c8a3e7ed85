"""Holds a structure's counts to torch's own."""

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from models.networks.torch_network import TorchNetwork


def differs(network: TorchNetwork, module: nn.Module) -> list[str]:
    """Why a structure is not its module's, by torch's own counts."""
    image = torch.zeros(1, *network.structure.image, device=next(module.parameters()).device)
    module.requires_grad_(False)  # the counter follows modules by their gradients where it can
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
    """Of products of parameters with each other, which no file computes: ONNX Runtime does it once, at load."""
    if not isinstance(module, GraphModule):
        return 0
    module.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _Still(module).run(None)
    module.requires_grad_(True)
    return int(counter.get_total_flops()) // 2


class _Still(Interpreter):
    """Runs what no image reaches."""

    def run_node(self, n: Node) -> Any:
        if n.target == "size":
            return 1
        moves = n.op in ("placeholder", "output") or any(self.env.get(source) is None for source in n.all_input_nodes)
        return None if moves else super().run_node(n)
