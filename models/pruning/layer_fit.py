"""The least-squares fit of one layer to wanted outputs, with a ridge that held-out images choose."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.pruning.recovery import ridge_solution

RIDGES = (1.0, 10.0, 100.0)
"""Ridges to choose from for each layer, relative to the mean variance of its inputs. A smaller one fits the held-out
images of its own layer better still, but the outputs of the network worse: on cluttered scenes at 0.12 of the MACs, a
ridge of 0.01 leaves a KL divergence of 0.66, and 1.0 leaves 0.61."""


def fit_layer(linear: nn.Linear, inputs: Tensor, wanted: Tensor, after: nn.Module, *, present: Tensor | None) -> None:
    """Solve scale * (W z + b) = wanted for W and b by least squares, in place.

    A ridge pulls W towards its current value.
    inputs: z, (B, N', K). wanted: (B, N', D). after: module that holds the layer scale, if there is one.
    present: (B, N') bool, the tokens to fit on; None: all.
    """
    for module in after.modules():
        scale = getattr(module, "gamma", None)
        if isinstance(scale, Tensor):
            wanted = wanted / torch.where(scale.abs() < 1e-6, torch.ones_like(scale), scale)
    every = present if present is not None else torch.ones(inputs.shape[:2], dtype=torch.bool)
    odd, even = (_moments(inputs[half::2], wanted[half::2], every[half::2]) for half in (1, 0))
    if not odd.rows or not even.rows:  # no image can be held out, so no fit can be trusted
        return
    both = odd.joined(even)
    old, variance = linear.weight.double(), float(both.covariance.diagonal().mean())
    ridges = [ridge * variance + 1e-12 for ridge in RIDGES]
    weight = both.solution(old, min(ridges, key=lambda ridge: even.error(odd.solution(old, ridge))))
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(both.wanted - weight @ both.inputs)


@dataclass(frozen=True)
class _Fit:
    """Moments of the inputs z and the wanted outputs t of a layer, in float64.

    covariance: of z, (K, K). together: covariance of t and z, (D, K). inputs, wanted: the means, (K,) and (D,).
    """

    rows: int
    covariance: Tensor
    together: Tensor
    inputs: Tensor
    wanted: Tensor

    def solution(self, current: Tensor, ridge: float) -> Tensor:
        return ridge_solution(self.covariance, self.together, current, ridge)

    def error(self, weight: Tensor) -> float:
        """Return the mean squared error of a weight, up to a constant that is the same for all weights."""
        return float(((weight @ self.covariance - 2 * self.together) * weight).sum())

    def joined(self, other: "_Fit") -> "_Fit":
        """Return the moments over the rows of both."""
        rows = self.rows + other.rows
        a, b = self.rows / rows, other.rows / rows
        z, t = self.inputs - other.inputs, self.wanted - other.wanted
        return _Fit(
            rows,
            a * self.covariance + b * other.covariance + a * b * torch.outer(z, z),
            a * self.together + b * other.together + a * b * torch.outer(t, z),
            a * self.inputs + b * other.inputs,
            a * self.wanted + b * other.wanted,
        )


def _moments(inputs: Tensor, wanted: Tensor, present: Tensor) -> _Fit:
    """Return the moments over the tokens that are present. inputs: (B, N, K). wanted: (B, N, D). present: (B, N)."""
    z, t = inputs[present], wanted[present]
    rows = max(1, len(z))
    z_mean, t_mean = z.sum(0) / rows, t.sum(0) / rows
    z, t = z - z_mean, t - t_mean
    covariance, together = (z.T @ z).double() / rows, (t.T @ z).double() / rows
    return _Fit(len(z), covariance, together, z_mean.double(), t_mean.double())
