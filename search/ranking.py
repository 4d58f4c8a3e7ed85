"""Scores over the members of each axis, from one criterion; higher means keep."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BlockRanking:
    """Of one block with H heads of q/v dims: heads (H,), qk (H, q), v (H, v), neurons (K,)."""

    heads: Array
    qk: Array
    v: Array
    neurons: Array


@dataclass(frozen=True)
class Ranking:
    """`across_blocks`: whether a score in one block compares with a score in another. `seconds`: what it cost."""

    criterion: str
    blocks: tuple[BlockRanking, ...]
    across_blocks: bool
    forward_passes: int
    seconds: float = 0.0
