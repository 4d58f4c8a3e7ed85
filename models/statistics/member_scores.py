"""Scores of members by the change of the outputs when a member is removed. All methods use this form."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MemberScores:
    """Scores of one block with H heads of d dims and K neurons. A higher score means keep.

    heads (H,), qk (H, q), v (H, v), neurons (K,).
    halves (2,): the scores of the two sublayers, attention and MLP.
    dims (H, d): UP-ViTs' attention dims. One dim is row j of q, of k and of v together with column j of the projection.
    """

    heads: Tensor
    qk: Tensor
    v: Tensor
    dims: Tensor
    neurons: Tensor
    halves: Tensor


@dataclass(frozen=True)
class StreamScores:
    """Scores of the residual stream, and the cost of all scores.

    embed (D,): the score of each embedding dim, removed in the whole residual stream.
    cost (2,): number of passes over the images (a backward pass counts as one pass) and seconds. It covers these scores
        and those of all blocks.
    """

    embed: Tensor
    cost: Tensor
