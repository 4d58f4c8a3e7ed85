"""HSIC dependence of features on the dense outputs (MDC, arXiv 2201.00043, section 3.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

SIGMAS = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Dependence:
    """HSIC of one block's features with the dense outputs (MDC, section 3.2).

    heads (H,), head_pairs (H, H): HSIC(f_h, f_g); neurons (K,); magnitudes (K,): sum of |activation|.
    """

    heads: Tensor
    head_pairs: Tensor
    neurons: Tensor
    magnitudes: Tensor


def centred(kernel: Tensor) -> Tensor:
    """H K H with H = I - 11'/n. kernel (..., n, n)."""
    rows = kernel.mean(-1, keepdim=True)
    return kernel - rows - rows.transpose(-1, -2) + kernel.mean((-1, -2), keepdim=True)


def gaussian_kernels(features: Tensor) -> Tensor:
    """Mean over sigma of exp(-|x - y|^2 / (2 sigma^2)). features (F, n, d) -> (F, n, n)."""
    square = (features**2).sum(-1)
    distance = square[:, :, None] + square[:, None, :] - 2 * features @ features.transpose(1, 2)
    distance.clamp_(min=0)
    return torch.stack([torch.exp(-distance / (2 * sigma**2)) for sigma in SIGMAS]).mean(0)


def output_kernel(logits: Tensor) -> Tensor:
    """The centred linear kernel on the softmax outputs. logits (n, C) -> (n, n)."""
    outputs = torch.softmax(logits.double(), dim=-1)
    return centred(outputs @ outputs.T).float()


def hsic(kernels: Tensor, other: Tensor) -> Tensor:
    """trace(HKH HLH) for each kernel, `other` already centred. kernels (F, n, n) -> (F,)."""
    return (kernels * other).sum((-1, -2))


def dependence(heads: Tensor, neurons: Tensor, outputs: Tensor) -> Dependence:
    """heads (n, N, H): mean over a head's channels; neurons (n, N, K); outputs: `output_kernel`.

    n images, N tokens. A feature is a vector over tokens.
    """
    kernels = centred(gaussian_kernels(heads.permute(2, 0, 1).contiguous()))
    pairs = torch.einsum("fij,gij->fg", kernels, kernels)
    scores = [hsic(gaussian_kernels(chunk), outputs) for chunk in neurons.permute(2, 0, 1).split(64)]
    return Dependence(hsic(kernels, outputs), pairs, torch.cat(scores), neurons.abs().sum((0, 1)))
