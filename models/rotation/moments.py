"""Second moments that the bases need, from one pass of the calibration images through the folded network."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.errors import InvalidRequest
from models.families.family import Family, blocks_of, part
from models.families.stream import Stream
from models.statistics.moments import Moments
from models.structure import Structure

Outputs = Callable[[], object]
"""Runs the calibration images through the network."""


def finite(moments: Tensor) -> Tensor:
    """Return the moments. Raises: InvalidRequest if a value is not a finite number, because they have no basis then."""
    if not bool(torch.isfinite(moments).all()):
        raise InvalidRequest(
            "The model computes values that are not finite numbers (NaN or infinity) on the calibration images. Check"
            " its weights and its preprocessing."
        )
    return moments


@dataclass
class Mean:
    """A running mean of products, in float64."""

    total: Tensor | float = 0.0
    count: int = 0

    def add(self, products: Tensor, rows: int) -> None:
        self.total = self.total + products.double().cpu()
        self.count += rows

    @property
    def value(self) -> Tensor:
        assert isinstance(self.total, Tensor)
        return finite(self.total / self.count)


@dataclass
class HeadMoments:
    """Moments of the heads of one block: q q' and centred k k', (H, d, d), and those of the outputs of the heads."""

    queries: Mean = field(default_factory=Mean)
    keys: Mean = field(default_factory=Mean)
    outputs: Moments = field(default_factory=Moments)

    def output_covariance(self, heads: int) -> Tensor:
        """Return the covariance of the output of each head, (H, d, d)."""
        covariance = finite(self.outputs.statistics().covariance)
        dim = len(covariance) // heads
        return torch.stack([covariance[h * dim : (h + 1) * dim, h * dim : (h + 1) * dim] for h in range(heads)])

    def add_queries(self, q: Tensor) -> None:
        """q: (B, N, H, d)."""
        self.queries.add(torch.einsum("bnhi,bnhj->hij", q, q), q.shape[0] * q.shape[1])

    def add_keys(self, k: Tensor) -> None:
        """k: (B, K, H, d), the keys that compete in one softmax."""
        k = k - k.mean(1, keepdim=True)
        self.keys.add(torch.einsum("bnhi,bnhj->hij", k, k), k.shape[0] * k.shape[1])


@dataclass(frozen=True)
class RotationMoments:
    """blocks: one for each block. streams: (D, D) for each stream, the mean of n n', summed over all readers of the
    normalised stream."""

    blocks: tuple[HeadMoments, ...]
    streams: tuple[Tensor, ...]


def collect_moments(
    module: nn.Module, family: Family, structure: Structure, run: Outputs, *, streams: Sequence[Stream]
) -> RotationMoments:
    """Run the images once, and return the moments.

    module: a folded network. streams: those whose moments are wanted too.
    """
    blocks = blocks_of(module, family)
    found = [HeadMoments() for _ in blocks]
    readers = [[(part(module, path), Mean()) for path in stream.layers] for stream in streams]
    hooks = []
    for block, moments, described in zip(blocks, found, structure.blocks, strict=True):
        assert described.attention is not None
        heads = described.attention.heads
        for path, made in family.attention_layers.items():
            hooks.append(part(block, path).register_forward_hook(_pairs_of(moments, heads, made)))
        hooks.append(part(block, family.projection).register_forward_pre_hook(_outputs_of(moments)))
    for reader, products in itertools.chain(*readers):
        hooks.append(reader.register_forward_pre_hook(_products_of(products)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    sums = (torch.stack([products.value for _, products in some]).sum(0) for some in readers)
    return RotationMoments(tuple(found), tuple(sums))


def _pairs_of(moments: HeadMoments, heads: int, made: str) -> Callable[[nn.Module, object, Tensor], None]:
    """made: the parts that the layer makes, such as "qkv"."""

    def add(_module: nn.Module, _inputs: object, joined: Tensor) -> None:
        rows = joined.reshape(len(joined), -1, len(made), heads, joined.shape[-1] // len(made) // heads)
        if "q" in made:
            moments.add_queries(rows[:, :, made.index("q")])
        if "k" in made:
            moments.add_keys(rows[:, :, made.index("k")])

    return add


def _outputs_of(moments: HeadMoments) -> Callable[[nn.Module, tuple[Tensor]], None]:
    return lambda _module, inputs: moments.outputs.add(inputs[0].flatten(0, -2))


def _products_of(mean: Mean) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def add(module: nn.Module, inputs: tuple[Tensor]) -> None:
        rows = (inputs[0].movedim(1, -1) if isinstance(module, nn.Conv2d) else inputs[0]).flatten(0, -2)
        mean.add(rows.T @ rows, len(rows))

    return add
