"""What the dense network does on calibration images, recorded once: means, covariances, dependence.

Rankings and recovery read these, never modules, so a network that is not PyTorch can provide the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

SIGMAS = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class InputStatistics:
    """First two moments of a linear layer's input over tokens and images. mean (D,), covariance (D, D), float64."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Dependence:
    """HSIC of one block's features with the dense outputs (MDC, section 3.2).

    heads (H,), head_pairs (H, H): HSIC(f_h, f_g); neurons (K,); magnitudes (K,): sum of |activation|.
    """

    heads: Tensor
    head_pairs: Tensor
    neurons: Tensor
    magnitudes: Tensor


@dataclass(frozen=True)
class BlockStatistics:
    projection: InputStatistics
    neurons: InputStatistics
    dependence: Dependence | None


class Moments:
    """Accumulates mean and covariance over batches of rows, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.shift: Tensor | None = None
        self.sum: Tensor | float = 0.0
        self.product: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """rows (R, D). The product is taken in the rows' precision, the sum over batches in float64."""
        if self.shift is None:
            self.shift = rows.mean(0)
        rows = rows - self.shift  # a large mean would drown the variance in rounding
        self.count += rows.shape[0]
        self.sum = self.sum + rows.double().sum(0)
        self.product = self.product + (rows.T @ rows).double()

    def statistics(self) -> InputStatistics:
        assert isinstance(self.sum, Tensor) and isinstance(self.product, Tensor) and self.shift is not None
        offset = self.sum / self.count
        covariance = self.product / self.count - torch.outer(offset, offset)
        covariance.diagonal().clamp_(min=0)
        return InputStatistics(self.shift.double() + offset, covariance)


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


def to_tensors(blocks: Iterable[BlockStatistics]) -> dict[str, Tensor]:
    """Flat names for a safetensors file."""
    flat: dict[str, Tensor] = {}
    for i, block in enumerate(blocks):
        for part in ("projection", "neurons"):
            inputs: InputStatistics = getattr(block, part)
            flat[f"{i}.{part}.mean"], flat[f"{i}.{part}.covariance"] = inputs.mean, inputs.covariance
        if block.dependence is not None:
            for name in ("heads", "head_pairs", "neurons", "magnitudes"):
                flat[f"{i}.dependence.{name}"] = getattr(block.dependence, name)
    return {name: tensor.contiguous() for name, tensor in flat.items()}


def from_tensors(flat: dict[str, Tensor]) -> tuple[BlockStatistics, ...]:
    blocks = []
    for i in range(1 + max(int(name.split(".")[0]) for name in flat)):
        inputs = [
            InputStatistics(flat[f"{i}.{part}.mean"], flat[f"{i}.{part}.covariance"])
            for part in ("projection", "neurons")
        ]
        found = None
        if f"{i}.dependence.heads" in flat:
            fields = ("heads", "head_pairs", "neurons", "magnitudes")
            found = Dependence(*(flat[f"{i}.dependence.{name}"] for name in fields))
        blocks.append(BlockStatistics(inputs[0], inputs[1], found))
    return tuple(blocks)
