"""Scores of the members (heads, dims, neurons) of each axis, from one criterion. A higher score means keep."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.structure import RotatedAxis, Structure

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BlockRanking:
    """Scores of one block with H heads and K neurons: heads (H,), qk (H, qk_dim), v (H, v_dim), neurons (K,)."""

    heads: Array
    qk: Array
    v: Array
    neurons: Array
    halves: Array | None = None
    """(2,): scores of the two sublayers, first the attention, then the MLP."""
    inputs: tuple[Array, Array, Array] | None = None
    """Scores from learned gates: inputs of q/k/v (D,), of the projection (H * v_dim,), of fc1 (D,)."""
    dims: Array | None = None
    """(H, d): scores of attention dims. One score covers row j of q, k and v together (UP-ViTs)."""


@dataclass(frozen=True)
class Ranking:
    """Scores of a whole network.

    across_blocks: True if scores of different blocks can be compared. forward_passes: over the calibration images.
    seconds: time that the ranking took.
    """

    criterion: str
    blocks: tuple[BlockRanking, ...]
    across_blocks: bool
    forward_passes: int
    seconds: float = 0.0
    embed: Array | None = None
    """(D,): scores of embedding dims, those of several streams in one row (`Structure.stream_dims`). A dim is removed
    from the whole residual stream."""
    rotated: tuple[RotatedAxis, ...] = ()
    """The axes whose members are directions of a rotated basis (models/rotation), the most important ones first."""
    ranges: Array | None = None
    """(L,): attention range of each layer, in [0, 1]; near 1 if the layer attends locally (CP-ViT)."""


def unranked(structure: Structure) -> Ranking:
    """A ranking that scores all members alike, so the first ones stay. For callers to whom only the counts matter."""
    blocks = []
    for block in structure.blocks:
        a, mlp = block.attention, block.mlp
        assert a is not None and mlp is not None
        qk, v = np.zeros((a.heads, a.qk_dim)), np.zeros((a.heads, a.v_dim))
        blocks.append(BlockRanking(np.zeros(a.heads), qk, v, np.zeros(mlp.neurons)))
    return Ranking("unranked", tuple(blocks), across_blocks=False, forward_passes=0)
