"""Scores over the members of each axis, from one criterion; higher means keep."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.structure import Structure

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BlockRanking:
    """Of one block with H heads of q/v dims: heads (H,), qk (H, q), v (H, v), neurons (K,)."""

    heads: Array
    qk: Array
    v: Array
    neurons: Array
    halves: Array | None = None
    """(2,): the attention and the MLP as a whole."""
    inputs: tuple[Array, Array, Array] | None = None
    """Of learned gates: inputs of q/k/v (D,), of the projection (H * v,), of fc1 (D,)."""
    dims: Array | None = None
    """(H, d): attention dims, row j of q, k and v at once (UP-ViTs)."""


@dataclass(frozen=True)
class Ranking:
    """`across_blocks`: whether a score in one block compares with a score in another. `seconds`: what it cost."""

    criterion: str
    blocks: tuple[BlockRanking, ...]
    across_blocks: bool
    forward_passes: int
    seconds: float = 0.0
    embed: Array | None = None
    """(D,): embedding dims, everywhere in the residual stream."""
    ranges: Array | None = None
    """(L,): the attention range of each layer, in [0, 1], near 1 where it is local (CP-ViT)."""


def unranked(structure: Structure) -> Ranking:
    """Every member alike: the first ones stay. Where only counts matter."""
    blocks = []
    for block in structure.blocks:
        a, mlp = block.attention, block.mlp
        assert a is not None and mlp is not None
        qk, v = np.zeros((a.heads, a.qk_dim)), np.zeros((a.heads, a.v_dim))
        blocks.append(BlockRanking(np.zeros(a.heads), qk, v, np.zeros(mlp.neurons)))
    return Ranking("unranked", tuple(blocks), across_blocks=False, forward_passes=0)
