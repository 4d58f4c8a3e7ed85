"""Tests of the search.

Expected improvement beats random search. An interrupted search resumes exactly. The search never repeats a structure.
"""

import numpy as np
import pytest
import scipy.stats

from search.budgets import Budget, Budgets
from search.loop.executor import LocalExecutor
from search.loop.objective import LowestCost
from search.loop.search import Search, best
from search.loop.searcher import Proposal, as_it_is, at_random, by_expected_improvement, standardised
from search.loop.trial import Score, Trial
from search.policy import Policy
from tests.support.worlds import macs_keep, small_space

DIMENSIONS, ROUNDS, SEEDS = 5, 30, 20


def synthetic(point: np.ndarray, seed: int) -> float:
    """Return the height of a smooth hill. The seed decides where its top is."""
    top = np.random.default_rng(1000 + seed).uniform(0.2, 0.8, DIMENSIONS)
    return float(-((point - top) ** 2).sum())


def best_found(propose: Proposal, seed: int) -> float:
    points = [list(p) for p in np.random.default_rng(seed).random((6, DIMENSIONS))]
    scores = [synthetic(np.asarray(p), seed) for p in points]
    for step in range(ROUNDS - len(points)):
        points.append(propose(points, scores, DIMENSIONS, 97 * seed + step, as_it_is)[0])
        scores.append(synthetic(np.asarray(points[-1]), seed))
    return max(scores)


@pytest.mark.slow
def test_expected_improvement_beats_random_over_twenty_seeds() -> None:
    """If the sign of expected improvement were flipped, the search would look where it expects least.

    This test would then fail.
    """
    guided = [best_found(by_expected_improvement, seed) for seed in range(SEEDS)]
    blind = [best_found(at_random, seed) for seed in range(SEEDS)]
    wins = sum(g > b for g, b in zip(guided, blind, strict=True))
    assert wins >= 18
    assert scipy.stats.wilcoxon(guided, blind, alternative="greater").pvalue < 1e-3


class World:
    """A problem that scores a policy by its distance to a hidden policy.

    It counts evaluations and keeps the records.
    """

    def __init__(self) -> None:
        self.space = small_space()
        self.evaluated: list[Policy] = []
        self.recorded: list[Trial] = []

    def score(self, policy: Policy) -> Score:
        self.evaluated.append(policy)
        return Score(-((policy.neurons - 0.5) ** 2) - (policy.heads - 0.8) ** 2, None)

    def search(self, seed: int = 0) -> Search:
        budgets = Budgets((Budget("macs_keep", 0.6),))
        return Search(self.space, budgets, macs_keep(self.space), LocalExecutor(self.score), self.recorded.append, seed)


def test_a_resumed_search_gives_the_same_trials() -> None:
    whole = World()
    expected = whole.search().run([], 14)
    resumed = World()
    found = resumed.search().run(expected[:9], 14)
    assert [t.policy for t in found] == [t.policy for t in expected]
    assert len(resumed.evaluated) == 5, "finished trials are not run again"


def test_structures_are_not_repeated_and_starts_are_few() -> None:
    world = World()
    trials = world.search().run([], 20)
    assert len({t.structure_key for t in trials}) == len(trials) == 20
    assert 1 <= sum(t.start for t in trials) <= 5
    assert [t.number for t in world.recorded] == list(range(20))


def test_every_trial_is_within_its_budget_and_says_its_cost() -> None:
    for trial in World().search().run([], 12):
        assert 0.5 < trial.costs["macs_keep"] <= 0.6


def test_other_seeds_give_other_trials() -> None:
    first, second = (World().search(seed).run([], 12) for seed in (0, 1))
    assert [t.policy for t in first] != [t.policy for t in second]


def test_the_best_trial_is_the_one_with_the_best_score() -> None:
    trials = World().search().run([], 12)
    assert best(trials)[0].score == max(t.score for t in trials)


def test_a_collapse_does_not_hide_the_differences_between_good_scores() -> None:
    scores = standardised(np.array([0.90, 0.91, 0.92, 0.93, -50.0]))
    assert scores[3] - scores[0] > 1.0
    assert standardised(np.array([1.0, 1.0])).tolist() == [0, 0]


def test_a_trial_survives_json() -> None:
    trial = World().search().run([], 1)[0]
    assert Trial.from_json(trial.to_json()) == trial


@pytest.mark.parametrize(("accuracy", "agreement", "value"), [(None, -0.2, -0.2), (0.9, -0.2, 0.7)])
def test_what_is_maximised(accuracy: float | None, agreement: float, value: float) -> None:
    assert Score(agreement, accuracy).value == pytest.approx(value)


def test_the_lowest_cost_within_a_loss() -> None:
    """The scores fall as neurons are removed.

    The delivered policy is near the largest permitted loss and far below the budget.
    """
    space = small_space()
    price = macs_keep(space)

    def score(policy: Policy) -> Score:
        return Score(0.0, min(0.9, 0.9 - 0.1 * (0.6 - policy.neurons)) - 0.2 * (1 - policy.heads), 1.0)

    least = float(price([space.sketch(space.along([1.0] * len(space.dimensions), 2))])[0, 0])
    objective = LowestCost(Score(0.0, 0.9), 0.02, (least,))
    search = Search(
        space, Budgets((Budget("macs_keep", 1.0),)), price, LocalExecutor(score), lambda _: None, 0, objective=objective
    )
    trials = search.run([], 30)
    chosen = best(trials)[0]
    assert chosen.allowed and chosen.accuracy is not None and chosen.accuracy >= 0.88
    assert chosen.costs["macs_keep"] == min(t.costs["macs_keep"] for t in trials if t.allowed) < 0.7
    assert any(not t.allowed for t in trials)


def test_the_largest_seed_works() -> None:
    assert len(World().search(2**31 - 1).run([], 8)) == 8
