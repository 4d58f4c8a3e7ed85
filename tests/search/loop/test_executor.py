"""Tests of trials that run at the same time.

The results do not depend on when and where a trial runs. The search does not propose a policy whose trial is running.
"""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from search.budgets import Budget, Budgets
from search.loop.executor import Evaluate, Evaluated, Executor, LocalExecutor, Waiting, timed
from search.loop.search import Search
from search.loop.searcher import by_expected_improvement
from search.loop.trial import Score, Trial
from search.policy import Policy
from tests.support.worlds import macs_keep, small_space

SPACE = small_space()
TRIALS = 9


def score(policy: Policy) -> Score:
    return Score(-((policy.neurons - 0.5) ** 2) - (policy.heads - 0.8) ** 2, None)


class Threads:
    """An executor that runs several trials at the same time. Each trial takes a random time of up to 50 ms."""

    def __init__(self, workers: int) -> None:
        self._pool, self._draw = ThreadPoolExecutor(workers), random.Random(workers)

    def begin(self, policy: Policy) -> Waiting:
        return self._pool.submit(self._run, policy, self._draw.random() / 20).result

    def _run(self, policy: Policy, seconds: float) -> Evaluated:
        time.sleep(seconds)
        return timed(score, policy)


def search(place: Executor, parallel: int, record: Callable[[Trial], None] = lambda _: None) -> Search:
    budgets = Budgets((Budget("macs_keep", 0.6),))
    return Search(SPACE, budgets, macs_keep(SPACE), place, record, 0, parallel=parallel)


def told(trials: list[Trial]) -> list[tuple[int, tuple[float, ...], Policy, float, bool]]:
    """Return everything about the trials except their seconds."""
    return [(t.number, t.direction, t.policy, t.score, t.start) for t in trials]


@pytest.mark.parametrize("parallel", [2, 4])
def test_the_trials_do_not_depend_on_how_many_are_really_evaluated_at_a_time(parallel: int) -> None:
    expected = told(search(LocalExecutor(score), parallel).run([], TRIALS))
    for workers in (1, 2, 4):
        recorded: list[Trial] = []
        assert told(search(Threads(workers), parallel, recorded.append).run([], TRIALS)) == expected
        assert [trial.number for trial in recorded] == list(range(TRIALS))


class Counting:
    """An executor that counts the trials that have begun and whose result nobody has waited for."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def begin(self, policy: Policy) -> Waiting:
        self.now += 1
        self.most = max(self.most, self.now)
        return lambda: self._end(policy)

    def _end(self, policy: Policy) -> Evaluated:
        self.now -= 1
        return timed(score, policy)


@pytest.mark.parametrize("parallel", [1, 3])
def test_so_many_are_begun_before_the_first_is_waited_for(parallel: int) -> None:
    place = Counting()
    search(place, parallel).run([], 5)
    assert place.most == parallel


def test_a_search_that_was_stopped_after_any_trial_goes_on_with_the_same() -> None:
    whole = search(LocalExecutor(score), 3).run([], TRIALS)
    for finished in (1, 4, TRIALS):
        evaluated: list[Policy] = []
        resumed = search(LocalExecutor(_noting(evaluated)), 3).run(whole[:finished], TRIALS)
        assert told(resumed) == told(whole)
        assert len(evaluated) == TRIALS - finished


def _noting(evaluated: list[Policy]) -> Evaluate:
    def evaluate(policy: Policy) -> Score:
        evaluated.append(policy)
        return score(policy)

    return evaluate


def test_no_structure_is_tried_twice_at_a_time() -> None:
    trials = search(LocalExecutor(score), 8).run([], 16)
    assert len({trial.structure_key for trial in trials}) == len(trials) == 16


def test_more_at_a_time_than_trials_are_wanted() -> None:
    assert [trial.number for trial in search(LocalExecutor(score), 8).run([], 5)] == [0, 1, 2, 3, 4]


def test_a_point_that_is_being_tried_is_not_proposed_again() -> None:
    points = [list(map(float, p)) for p in np.random.default_rng(3).random((12, 4))]
    scores = [-float(((np.asarray(p) - 0.4) ** 2).sum()) for p in points]
    first = by_expected_improvement(points, scores, 4, 7)
    with_first = by_expected_improvement([*points, first[0]], scores, 4, 7)
    without = by_expected_improvement(points, scores, 4, 7)
    assert without[0] == first[0], "nothing else sends the searcher elsewhere"
    assert _distance(with_first[0], first[0]) > 0.05
    assert first[0] not in with_first[:20]


def _distance(one: list[float], other: list[float]) -> float:
    return float(np.linalg.norm(np.asarray(one) - np.asarray(other)))


def test_what_an_evaluation_raises_reaches_the_caller_and_the_trials_before_it_are_kept() -> None:
    recorded: list[Trial] = []
    evaluated: list[Policy] = []

    def fails_at_the_fourth(policy: Policy) -> Score:
        evaluated.append(policy)
        if len(evaluated) == 4:
            raise MemoryError
        return score(policy)

    with pytest.raises(MemoryError):
        search(LocalExecutor(fails_at_the_fourth), 2, recorded.append).run([], TRIALS)
    assert [trial.number for trial in recorded] == [0, 1, 2]
