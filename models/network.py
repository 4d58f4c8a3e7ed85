"""A `Network` can be described, give statistics, be pruned, give outputs and be exported. PyTorch is one kind of it."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from torch import Tensor, nn

from models.plan import Plan
from models.rows import Form
from models.statistics import Kind, Statistics
from models.structure import Structure


@dataclass(frozen=True)
class LayerWeights:
    """The dense layers of one block that rankings and recovery read. q, k, v rows of `qkv` are heads x dim each."""

    heads: int
    qkv: nn.Linear
    projection: nn.Linear
    fc1: nn.Linear
    fc2: nn.Linear
    scale1: Tensor | None = None
    scale2: Tensor | None = None
    """Layer scale after projection and fc2, (D,)."""


class Network(Protocol):
    @property
    def structure(self) -> Structure: ...

    def weights(self) -> tuple[LayerWeights, ...]: ...

    def outputs(self, images: Tensor, batch: int = 64) -> Tensor:
        """Logits (n, C) of images (n, C, H, W), without gradients."""
        ...

    def statistics(self, images: Tensor, kinds: Collection[Kind] = (), labels: Tensor | None = None) -> Statistics: ...

    def pruned(self, plan: Plan, statistics: Statistics | None) -> Self:
        """The network that `plan` leaves; with statistics (of this network) recovered in closed form."""
        ...

    def export(self, path: Path, batch: int | None, form: Form = "standard") -> None:
        """An ONNX file; batch None: any batch size. form: for whom."""
        ...
