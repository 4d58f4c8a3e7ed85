"""The layers of a pruned block that recovery may refit."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Readers:
    """The layers of one pruned block that recovery may refit.

    The projection reads the heads and fc2 reads the neurons; q/k/v and fc1 read the residual stream. A layer is None if
    it was removed, or if it still reads all of its inputs.
    """

    projection: nn.Linear | None
    fc2: nn.Linear | None
    qkv: Mapping[str, nn.Linear] = field(default_factory=dict)
    """The layers that make q, k and v out of the residual stream, each with what it makes: "qkv", "q", "kv"."""
    fc1: nn.Linear | None = None
