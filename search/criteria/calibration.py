"""From an order of members to scores that compare between blocks: what the network's answers lose is tried out.

A criterion says which neuron of a block goes first; whether block 2 or block 9 can spare more of them it can only guess. So
each block alone is pruned to a few keeps (with recovery), the divergence of the answers is recorded, and the members get
the slope of that curve at their removal. Slopes compare: with them, the best members over all blocks are those whose
removal costs least in all, as in SPDY (arXiv 2201.13096) and ZipLM (arXiv 2302.04089), whose tables hold such losses too.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from models.plan import BlockPlan, Plan, identity
from models.structure import Structure
from search.ranking import Array, BlockRanking, Ranking

KEEPS = (0.6, 0.35, 0.15)
"""Of each block's heads and neurons, where its curve is taken."""
Loss = Callable[[Plan], float]
"""Divergence of the pruned network's answers from the dense ones, at least 0."""


def calibrated(ranking: Ranking, structure: Structure, loss: Loss) -> Ranking:
    """The same order inside every block, with scores in units of `loss` that compare across blocks."""
    blocks = []
    for i, scores in enumerate(ranking.blocks):
        heads = _slopes(scores.heads, lambda kept, i=i: loss(_alone(structure, i, heads=kept)))  # type: ignore[misc]
        neurons = _slopes(scores.neurons, lambda kept, i=i: loss(_alone(structure, i, neurons=kept)))  # type: ignore[misc]
        blocks.append(dataclasses.replace(scores, heads=heads, neurons=neurons))
    return dataclasses.replace(ranking, blocks=tuple(blocks), across_blocks=True)


def evaluations(blocks: Sequence[BlockRanking]) -> int:
    """How often `calibrated` asks for a loss."""
    return sum(len(_counts(len(b.heads))) + len(_counts(len(b.neurons))) for b in blocks)


def _alone(
    structure: Structure, block: int, heads: Sequence[int] | None = None, neurons: Sequence[int] | None = None
) -> Plan:  # fmt: skip
    """Everything stays, but in one block only the given heads or neurons."""
    whole = identity(structure)
    plan: BlockPlan = whole.blocks[block]
    if heads is not None:
        plan = dataclasses.replace(plan, heads=tuple(plan.heads[h] for h in heads))
    if neurons is not None:
        plan = dataclasses.replace(plan, neurons=tuple(neurons))
    return dataclasses.replace(whole, blocks=(*whole.blocks[:block], plan, *whole.blocks[block + 1 :]))


def _counts(size: int) -> list[int]:
    """Members kept at the points of a curve: at least one, fewer than all, falling."""
    return sorted({max(1, round(size * keep)) for keep in KEEPS if round(size * keep) < size}, reverse=True)


def _slopes(scores: Array, loss_of: Callable[[Sequence[int]], float]) -> Array:
    """scores (K,) give the order. Returns (K,): the rise of the loss curve where each member goes."""
    order = np.argsort(-scores, kind="stable")
    points = [(0.0, 0.0)]
    for kept in _counts(len(scores)):
        points.append((float(len(scores) - kept), loss_of([int(i) for i in np.sort(order[:kept])])))
    rises = _rising(np.asarray(points), len(scores))
    slopes = np.empty(len(scores))
    slopes[order[::-1]] = rises
    return slopes


def _rising(points: Array, size: int) -> Array:
    """Slope at the removal of each of `size` members, first removed first; never falling.

    points (P, 2): removed, loss. Where the curve sags, removing more costs relatively less than removing some, and only its
    lower convex hull can be bought by a threshold. Slopes are interpolated between the middles of its segments.
    """
    if len(points) == 1:
        return np.ones(size)
    hull = [points[0]]
    for point in points[1:]:
        while len(hull) > 1 and _slope(hull[-1], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    corners = np.asarray(hull)
    slopes = np.maximum(np.diff(corners[:, 1]) / np.diff(corners[:, 0]), 0)
    middles = (corners[1:, 0] + corners[:-1, 0]) / 2
    places = np.arange(size) + 0.5
    risen = np.interp(places, middles, slopes)
    if len(slopes) > 1:  # beyond the last middle the curve goes on bending
        bend = (slopes[-1] - slopes[-2]) / (middles[-1] - middles[-2])
        risen = np.where(places > middles[-1], slopes[-1] + bend * (places - middles[-1]), risen)
    risen = np.where(places < middles[0], slopes[0] * places / middles[0], risen)
    return np.asarray(np.maximum.accumulate(risen) + 1e-12 * places)


def _slope(a: Array, b: Array) -> float:
    return float((b[1] - a[1]) / (b[0] - a[0]))
