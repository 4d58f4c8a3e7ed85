"""Tests of the local search: exchanges between blocks gain, stay within the budgets, and can be repeated exactly."""

import functools
from collections.abc import Sequence

import pytest

from search.budgets import Budget, Budgets
from search.loop.executor import LocalExecutor
from search.loop.local_search import LocalSearch
from search.loop.objective import BestScore, LowestCost, Objective
from search.loop.search import Search, best
from search.loop.trial import Score, Trial
from search.policy import Policy
from search.spaces.compact import LEAST
from tests.support.worlds import macs_keep, small_space

IMPORTANCE = (8.0, 1.0, 1.0, 0.1)
"""What the neurons of each block are worth. The ranking of the space is random: it knows nothing of it."""
TRIALS = 16


class Uneven:
    """A problem in which some blocks matter more than others. It counts the evaluations on a part of the images."""

    def __init__(self) -> None:
        self.space, self.parts = small_space(("qk", "v", "neurons")), 0

    def score(self, policy: Policy) -> Score:
        loss, whole = 0.0, self.space.structure.blocks
        for worth, block, dense in zip(IMPORTANCE, self.space.sketch(policy).blocks, whole, strict=True):
            assert block.mlp and dense.mlp and block.attention and dense.attention
            loss += worth * (1 - block.mlp.neurons / dense.mlp.neurons) ** 2
            loss += (1 - block.attention.qk_dim / dense.attention.qk_dim) ** 2
            loss += (1 - block.attention.v_dim / dense.attention.v_dim) ** 2
        return Score(-loss, None, 1 - loss / 10)

    def on_a_part(self, policy: Policy) -> Score:
        self.parts += 1
        return self.score(policy)

    def run(
        self, local: bool, done: Sequence[Trial] = (), objective: Objective | None = None, parallel: int = 1
    ) -> list[Trial]:
        price = macs_keep(self.space)
        budgets = Budgets((Budget("macs_keep", 0.6),))
        around = LocalSearch(self.space, price, LocalExecutor(self.on_a_part)) if local else None
        search = Search(
            self.space,
            budgets,
            price,
            LocalExecutor(self.score),
            lambda _trial: None,
            0,
            objective=objective or BestScore(),
            parallel=parallel,
            local=around,
        )
        return search.run(done, TRIALS)


@functools.cache
def found(local: bool, parallel: int = 1) -> tuple[Trial, ...]:
    return tuple(Uneven().run(local, parallel=parallel))


def test_exchanges_between_blocks_beat_as_many_trials_without_them() -> None:
    alone, local = best(found(False))[0], best(found(True))[0]
    assert local.local and local.score > alone.score + 0.1
    keeps = local.policy.neurons_by_block
    assert keeps[0] > keeps[1] > keeps[3]


def test_every_step_stays_within_the_budget_and_above_the_least_shares() -> None:
    steps = [trial for trial in found(True) if trial.local]
    assert len(steps) >= 2
    for trial in steps:
        assert 0.55 < trial.costs["macs_keep"] <= 0.6
        assert min(trial.policy.neurons_by_block) >= LEAST["neurons"]
        assert min(trial.policy.qk_by_block) >= LEAST["qk"]
        assert trial.policy.embed == 1.0  # this space cannot cut the width


def test_no_structure_is_tried_twice() -> None:
    trials = found(True)
    assert len({trial.structure_key for trial in trials}) == len(trials) == TRIALS


@pytest.mark.parametrize("done", [TRIALS - 5, TRIALS - 1])
def test_an_interrupted_search_continues_with_the_same_steps(done: int) -> None:
    whole = found(True)
    assert [t.policy for t in Uneven().run(True, whole[:done])] == [t.policy for t in whole]


def test_parallel_trials_do_not_depend_on_what_is_finished() -> None:
    whole = found(True, 3)
    assert any(trial.local for trial in whole)
    assert [t.policy for t in Uneven().run(True, whole[: TRIALS - 4], parallel=3)] == [t.policy for t in whole]


def test_the_rates_of_one_policy_are_found_once() -> None:
    world = Uneven()
    trials = world.run(True)
    shares = max(len(trial.policy.shares) for trial in trials)
    assert sum(trial.local for trial in trials) > 1
    assert 0 < world.parts <= shares + 1


def test_a_search_for_the_lowest_cost_goes_further_down() -> None:
    world = Uneven()
    objective = LowestCost(Score(0.0, None), 0.45, (0.3,))
    trials = world.run(True, objective=objective)
    steps = [trial for trial in trials if trial.local]
    before = best([trial for trial in trials if not trial.local])[0]
    reached = best(steps)[0]
    assert reached.allowed and reached.costs["macs_keep"] < before.costs["macs_keep"]


def test_a_local_trial_is_decoded_again_from_its_own_policy() -> None:
    """A measurement corrects the prices. The new policy must keep what the local search has found."""
    world = Uneven()
    trial = next(t for t in found(True) if t.local)
    price = macs_keep(world.space)
    tighter = Budgets((Budget("macs_keep", 0.5),))
    search = Search(world.space, tighter, price, LocalExecutor(world.score), lambda _trial: None, 0)
    again = search.decoded_again(trial)
    assert again is not None and again.neurons_by_block
    assert 0.45 < price([world.space.sketch(again)])[0, 0] <= 0.5
    ratios = [a / b for a, b in zip(again.qk_by_block, trial.policy.qk_by_block, strict=True)]
    assert max(ratios) - min(ratios) < 1e-6 or min(again.qk_by_block) == LEAST["qk"]


def test_a_policy_by_block_means_the_same_network() -> None:
    space = small_space()
    policy = space.along([0.5] * len(space.dimensions), 0.8)
    spread = space.by_block(policy)
    assert spread is not None and spread.neurons_by_block
    assert space.sketch(spread) == space.sketch(policy) and space.plan(spread) == space.plan(policy)
    assert space.by_block(spread) == spread
