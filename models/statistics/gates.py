"""Soft gates (VTP, arXiv 2104.08500, section 3): one learned factor for every input of a linear layer, X diag(a)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.families.family import Family, part, replace_part


@dataclass(frozen=True)
class Gates:
    """The trained gates of one block: qkv_inputs (D,), proj_inputs (H * v,), fc1_inputs (D,), neurons (K,)."""

    qkv_inputs: Tensor
    proj_inputs: Tensor
    fc1_inputs: Tensor
    neurons: Tensor


class GatedLinear(nn.Module):
    """A linear layer whose inputs are multiplied by gates. All gates start at 1, fully open."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.gate = nn.Parameter(torch.ones(linear.in_features))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x * self.gate)
        return out

    def folded(self) -> nn.Linear:
        """Return an equivalent linear layer with the gates in its weights, W diag(a)."""
        linear = copy.deepcopy(self.linear)
        with torch.no_grad():
            linear.weight.mul_(self.gate)
        return linear


def attach(blocks: Sequence[nn.Module], family: Family) -> list[nn.Parameter]:
    """Put gates before q/k/v, projection, fc1 and fc2 of each block, in place. Return the gates."""
    gates = []
    for block in blocks:
        for path in _gated(family):
            linear = part(block, path)
            assert isinstance(linear, nn.Linear)
            gated = GatedLinear(linear)
            replace_part(block, path, gated)
            gates.append(gated.gate)
    return gates


def fold(blocks: Sequence[nn.Module], family: Family) -> tuple[Gates, ...]:
    """Multiply the gates into the weights of their layers, in place. Return the values of the gates."""
    return tuple(Gates(*(_fold(block, path) for path in _gated(family))) for block in blocks)


def _fold(block: nn.Module, path: str) -> Tensor:
    gated = part(block, path)
    assert isinstance(gated, GatedLinear)
    replace_part(block, path, gated.folded())
    return gated.gate.detach().clone()


def _gated(family: Family) -> tuple[str, str, str, str]:
    """Return the paths of the gated layers, in the order of the fields of `Gates`."""
    return family.qkv, family.projection, family.fc1, family.fc2
