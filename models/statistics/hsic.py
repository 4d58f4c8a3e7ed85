"""HSIC between features and the outputs of the dense network (MDC, arXiv 2201.00043, section 3.2)."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from models.statistics.class_logits import class_logits

SIGMAS = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Dependence:
    """HSIC between the features of one block and the outputs of the dense network (MDC, section 3.2).

    heads (H,): HSIC of each head with the outputs.
    head_pairs (H, H): HSIC(f_h, f_g) of each pair of heads.
    neurons (K,): HSIC of each neuron with the outputs.
    magnitudes (K,): sum of |activation| of each neuron.
    """

    heads: Tensor
    head_pairs: Tensor
    neurons: Tensor
    magnitudes: Tensor

    def plus(self, other: "Dependence") -> "Dependence":
        """Return the sums of both: a block whose weights are used several times has one value for each use."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self))
        return Dependence(*(one + another for one, another in pairs))


def centred(kernel: Tensor) -> Tensor:
    """Centre a kernel (..., n, n): return H K H with H = I - 11'/n."""
    rows = kernel.mean(-1, keepdim=True)
    return kernel - rows - rows.transpose(-1, -2) + kernel.mean((-1, -2), keepdim=True)


def gaussian_kernels(features: Tensor) -> Tensor:
    """Return the mean over sigma of exp(-|x - y|^2 / (2 sigma^2)). features (F, n, d) -> (F, n, n)."""
    square = (features**2).sum(-1)
    distance = square[:, :, None] + square[:, None, :] - 2 * features @ features.transpose(1, 2)
    distance.clamp_(min=0)
    return torch.stack([torch.exp(-distance / (2 * sigma**2)) for sigma in SIGMAS]).mean(0)


def output_kernel(logits: Tensor) -> Tensor:
    """Return the centred linear kernel of the softmax outputs. logits (n, C) -> (n, n)."""
    outputs = torch.softmax(class_logits(logits).double(), dim=-1)
    return centred(outputs @ outputs.T).float()


def hsic(kernels: Tensor, other: Tensor) -> Tensor:
    """Return trace(HKH HLH) for each kernel. `other` (HLH) is already centred. kernels (F, n, n) -> (F,)."""
    return (kernels * other).sum((-1, -2))


def dependence(heads: Tensor, neurons: Tensor, outputs: Tensor) -> Dependence:
    """Compute the HSIC of the heads and neurons of one block, for n images with N tokens.

    A feature is a vector over tokens.

    heads: (n, N, H), the mean over the channels of each head.
    neurons: (n, N, K).
    outputs: the result of `output_kernel`.
    """
    kernels = centred(gaussian_kernels(heads.permute(2, 0, 1).contiguous()))
    pairs = torch.einsum("fij,gij->fg", kernels, kernels)
    scores = [hsic(gaussian_kernels(chunk), outputs) for chunk in neurons.permute(2, 0, 1).split(64)]
    return Dependence(hsic(kernels, outputs), pairs, torch.cat(scores), neurons.abs().sum((0, 1)))
