"""Second moments that the bases need, from one pass of the calibration images through the folded network."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.families.family import Family, blocks_of, classifiers, linear_part, part
from models.statistics.moments import Moments
from models.structure import Structure

Outputs = Callable[[], object]
"""Runs the calibration images through the network."""


@dataclass
class _Mean:
    """A running mean of products, in float64."""

    total: Tensor | float = 0.0
    count: int = 0

    def add(self, products: Tensor, rows: int) -> None:
        self.total = self.total + products.double().cpu()
        self.count += rows

    @property
    def value(self) -> Tensor:
        assert isinstance(self.total, Tensor)
        return self.total / self.count


@dataclass
class HeadMoments:
    """Moments of the heads of one block: q q' and centred k k', (H, d, d), and those of the outputs of the heads."""

    queries: _Mean = field(default_factory=_Mean)
    keys: _Mean = field(default_factory=_Mean)
    outputs: Moments = field(default_factory=Moments)

    def output_covariance(self, heads: int) -> Tensor:
        """Return the covariance of the output of each head, (H, d, d)."""
        covariance = self.outputs.statistics().covariance
        dim = len(covariance) // heads
        return torch.stack([covariance[h * dim : (h + 1) * dim, h * dim : (h + 1) * dim] for h in range(heads)])

    def add_pairs(self, q: Tensor, k: Tensor) -> None:
        """q: (B, N, H, d). k: (B, K, H, d), the keys that compete in one softmax."""
        k = k - k.mean(1, keepdim=True)
        self.queries.add(torch.einsum("bnhi,bnhj->hij", q, q), q.shape[0] * q.shape[1])
        self.keys.add(torch.einsum("bnhi,bnhj->hij", k, k), k.shape[0] * k.shape[1])


@dataclass(frozen=True)
class RotationMoments:
    """blocks: one for each block. stream: (D, D), mean of n n', summed over all readers of the normalised stream."""

    blocks: tuple[HeadMoments, ...]
    stream: Tensor


def collect_moments(module: nn.Module, family: Family, structure: Structure, run: Outputs) -> RotationMoments:
    """Run the images once, and return the moments.

    module: a folded network, so that its layers read the normalised stream itself.
    """
    blocks = blocks_of(module, family)
    found = [HeadMoments() for _ in blocks]
    readers = [linear_part(block, path) for block in blocks for path in (family.qkv, family.fc1)]
    readers += classifiers(module, family)
    streams = [_Mean() for _ in readers]
    hooks = []
    for block, moments, described in zip(blocks, found, structure.blocks, strict=True):
        assert described.attention is not None
        heads = described.attention.heads
        hooks.append(part(block, family.qkv).register_forward_hook(_pairs_of(moments, heads)))
        hooks.append(part(block, family.projection).register_forward_pre_hook(_outputs_of(moments)))
    for reader, stream in zip(readers, streams, strict=True):
        hooks.append(reader.register_forward_pre_hook(_products_of(stream)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return RotationMoments(tuple(found), torch.stack([stream.value for stream in streams]).sum(0))


def _pairs_of(moments: HeadMoments, heads: int) -> Callable[[nn.Module, object, Tensor], None]:
    def add(_module: nn.Module, _inputs: object, joined: Tensor) -> None:
        batch, tokens, _ = joined.shape  # (B, N, 3 H d)
        q, k, _ = joined.reshape(batch, tokens, 3, heads, -1).unbind(2)
        moments.add_pairs(q, k)

    return add


def _outputs_of(moments: HeadMoments) -> Callable[[nn.Module, tuple[Tensor]], None]:
    return lambda _module, inputs: moments.outputs.add(inputs[0].flatten(0, -2))


def _products_of(mean: _Mean) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def add(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        rows = inputs[0].flatten(0, -2)
        mean.add(rows.T @ rows, len(rows))

    return add
