"""Scores of a network's members by what its answers lose, in one form however they were found."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MemberScores:
    """Of one block with H heads of d dims and K neurons; higher means keep.

    heads (H,), qk (H, q), v (H, v), neurons (K,), halves (2,): the attention and the MLP as a whole.
    dims (H, d): UP-ViTs' attention dims, row j of q, of k and of v and column j of the projection at once.
    """

    heads: Tensor
    qk: Tensor
    v: Tensor
    dims: Tensor
    neurons: Tensor
    halves: Tensor


@dataclass(frozen=True)
class StreamScores:
    """embed (D,): an embedding dim, everywhere in the residual stream. cost (2,): passes over the images (a backward pass
    counts as one) and seconds, of these and of the blocks' scores together."""

    embed: Tensor
    cost: Tensor
