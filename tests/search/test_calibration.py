"""Scores that compare across blocks come from what removal really costs."""

import numpy as np
import pytest

from models.plan import Plan
from search.criteria.calibration import calibrated, evaluations
from search.spaces.compact import CompactSpace
from tests.models.networks import small_network
from tests.search.worlds import random_ranking

STRUCTURE = small_network(depth=3).structure
RANKING = random_ranking(STRUCTURE, across_blocks=False)


def loss_of(sensitivity: tuple[float, ...], power: float = 2.0):
    """A world where block b loses sensitivity[b] * (share of its neurons removed) ** power, and heads cost likewise."""

    def loss(plan: Plan) -> float:
        total = 0.0
        for block, weight in zip(plan.blocks, sensitivity, strict=True):
            total += weight * (1 - len(block.neurons) / 192) ** power + weight * (1 - len(block.heads) / 3) ** power
        return total

    return loss


def test_the_order_inside_a_block_stays() -> None:
    found = calibrated(RANKING, STRUCTURE, loss_of((1.0, 2.0, 3.0)))
    assert found.across_blocks
    for before, after in zip(RANKING.blocks, found.blocks, strict=True):
        assert (np.argsort(before.neurons) == np.argsort(after.neurons)).all()
        assert (np.argsort(before.heads) == np.argsort(after.heads)).all()


def test_what_hurts_least_goes_first() -> None:
    """With losses w (r / K)^2 the cheapest way to remove R in all takes r from each block in proportion to 1 / w."""
    ranking = calibrated(RANKING, STRUCTURE, loss_of((1.0, 2.0, 4.0)))
    space = CompactSpace(STRUCTURE, ranking, ("neurons",))
    counts = [len(b.neurons) for b in space.plan(space.along([1.0, 1.0], 0.5)).blocks]
    removed = np.asarray([192 - count for count in counts], dtype=float)
    assert removed / removed.sum() == pytest.approx(np.array([1, 1 / 2, 1 / 4]) / 1.75, abs=0.06)
    even = [len(b.neurons) for b in space.plan(space.along([1.0, 0.0], 0.5)).blocks]
    assert max(even) - min(even) <= 16


def test_a_curve_that_sags_is_taken_by_its_hull() -> None:
    """Where the last neurons are free, the first are not scored dearer than them: slopes never fall."""
    ranking = calibrated(RANKING, STRUCTURE, loss_of((1.0, 1.0, 1.0), power=0.5))
    for block in ranking.blocks:
        slopes = np.sort(block.neurons)
        assert np.isfinite(slopes).all() and slopes[0] >= 0
        assert slopes[-1] / slopes[100] < 1.01


def test_the_number_of_trials_is_known() -> None:
    asked = 0

    def loss(plan: Plan) -> float:
        nonlocal asked
        asked += 1
        return 0.0

    calibrated(RANKING, STRUCTURE, loss)
    assert asked == evaluations(RANKING.blocks) == 3 * (3 + 2)
