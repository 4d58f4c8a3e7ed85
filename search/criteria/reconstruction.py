"""Reconstruction: a member is scored by the error of the block's output after the member is removed and the others are
re-fitted in closed form.

This is backward elimination by optimal brain surgeon over whole columns. `models.pruning.recovery` later performs the
re-fit that the score assumes:
    P = (C + ridge)^-1,  loss(k) = |w_k|^2 / P_kk,
    after removing k:  W <- W - w_k P_k: / P_kk,  P <- P - P_:k P_k: / P_kk
Removing the first of two identical members costs nothing, because its twin stays. Removing the twin then costs all that
the two contributed. The score of a member is the loss at its removal, made monotone over the order of removal. Losses
are in units of the residual stream, so scores of different blocks can be compared.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.statistics.layer_weights import LayerWeights
from models.statistics.moments import InputStatistics
from models.statistics.statistics import BlockStatistics, Statistics
from search.criteria.magnitude import qk_scores
from search.ranking import Array, BlockRanking, Ranking

Members = npt.NDArray[np.intp]
RIDGE = 1e-3
FLOOR = 1e-8
"""Share of the squared mean that is added to the ridge: the rounding error of a constant must not count as variance."""
STEPS = 32
"""Members are removed in about this many groups. Inside a group the order is exact: one by one among the cheapest."""
SHORTLIST = 4


def reconstruction(weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    assert statistics is not None
    projection = _scaled(weights.projection.weight, weights.scale1)
    fc2 = _scaled(weights.fc2.weight, weights.scale2)
    halves = np.array([written(projection, statistics.projection).sum(), written(fc2, statistics.neurons).sum()])
    v = eliminate(projection, statistics.projection).reshape(weights.heads, -1)
    heads = eliminate_groups(projection, statistics.projection, weights.heads)
    return BlockRanking(heads, qk_scores(weights), v, eliminate(fc2, statistics.neurons), halves)


def written(weight: Array, inputs: InputStatistics) -> Array:
    """(O,): variance that a layer writes into each dim of the residual stream. weight (O, D)."""
    return np.asarray(((weight @ np.asarray(inputs.covariance)) * weight).sum(1))


def with_width(ranking: Ranking, weights: Sequence[LayerWeights], statistics: Statistics | None) -> Ranking:
    """Add scores of embedding dims, if there is one width: the variance that all blocks together write into a dim."""
    assert statistics is not None
    total = np.zeros(())
    if len({block.fc2.weight.shape[0] for block in weights}) > 1:
        return ranking
    for block, seen in zip(weights, statistics.blocks, strict=True):
        total = total + written(_scaled(block.projection.weight, block.scale1), seen.projection)
        total = total + written(_scaled(block.fc2.weight, block.scale2), seen.neurons)
    return dataclasses.replace(ranking, embed=np.asarray(total))


def _scaled(weight: Tensor, scale: Tensor | None) -> Array:
    """The weight times the layer scale that follows it: its outputs are what reaches the residual stream."""
    full = weight.detach().double()
    return np.asarray(full if scale is None else full * scale.double()[:, None])


def _precision(inputs: InputStatistics) -> Array:
    covariance = np.asarray(inputs.covariance)
    ridge = RIDGE * covariance.diagonal().mean() + FLOOR * float((inputs.mean**2).mean()) + 1e-12
    return np.asarray(np.linalg.inv(covariance + ridge * np.eye(len(covariance))))


def eliminate(weight: Array, inputs: InputStatistics) -> Array:
    """Remove all input columns, the cheapest first. weight (O, D). Return (D,): the loss at each column's removal."""
    weight, precision = weight.copy(), _precision(inputs)
    size = weight.shape[1]
    alive, scores, worst = np.arange(size), np.empty(size), 0.0
    group = max(1, size // STEPS)
    while len(alive):
        count = min(group, len(alive))
        losses = (weight**2).sum(0) / precision.diagonal()
        shortlist = np.argsort(losses, kind="stable")[: SHORTLIST * count]
        chosen, chosen_losses = _one_by_one(weight[:, shortlist], precision[np.ix_(shortlist, shortlist)], count)
        gone = shortlist[chosen]
        for member, loss in zip(alive[gone], chosen_losses, strict=True):
            worst = max(worst, loss)
            scores[member] = worst
        weight, precision = _without(weight, precision, gone)
        alive = np.delete(alive, gone)
    return scores


def _one_by_one(weight: Array, precision: Array, count: int) -> tuple[list[int], list[float]]:
    """Exact order and losses of `count` removals among a few columns. Updating only these columns keeps it exact."""
    weight, precision = weight.copy(), precision.copy()
    chosen: list[int] = []
    losses: list[float] = []
    for _ in range(count):
        loss = (weight**2).sum(0) / np.maximum(precision.diagonal(), 1e-30)
        loss[chosen] = np.inf
        k = int(loss.argmin())
        row = precision[k] / precision[k, k]
        weight -= np.outer(weight[:, k], row)
        precision -= np.outer(precision[:, k], row)
        chosen.append(k)
        losses.append(float(loss[k]))
    return chosen, losses


def _without(weight: Array, precision: Array, gone: Members) -> tuple[Array, Array]:
    """Weight and precision of the columns that stay after removing a group."""
    stays = np.delete(np.arange(weight.shape[1]), gone)
    solved = np.linalg.solve(precision[np.ix_(gone, gone)], precision[np.ix_(gone, stays)])
    return (
        weight[:, stays] - weight[:, gone] @ solved,
        precision[np.ix_(stays, stays)] - precision[np.ix_(stays, gone)] @ solved,
    )


def eliminate_groups(weight: Array, inputs: InputStatistics, groups: int) -> Array:
    """Like `eliminate`, for `groups` runs of neighbouring columns of equal length (heads). Return (groups,)."""
    weight, precision = weight.copy(), _precision(inputs)
    size = weight.shape[1] // groups
    alive, scores, worst = list(range(groups)), np.empty(groups), 0.0
    while alive:
        losses = []
        for place in range(len(alive)):
            span = slice(place * size, (place + 1) * size)
            part = weight[:, span]
            losses.append(float((part * np.linalg.solve(precision[span, span], part.T).T).sum()))
        place = int(np.argmin(losses))
        worst = max(worst, losses[place])
        scores[alive.pop(place)] = worst
        weight, precision = _without(weight, precision, np.arange(place * size, (place + 1) * size))
    return scores
