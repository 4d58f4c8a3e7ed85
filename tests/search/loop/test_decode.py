"""Check that every proposal lies on its budgets before the search evaluates it."""

from collections.abc import Sequence

import numpy as np
import pytest

from models.errors import ImpossibleBudget, InvalidRequest
from models.structure import Structure
from search.budgets import Budget, Budgets
from search.loop.decode import decode
from search.policy import Policy
from search.ranking import Array
from search.spaces.compact import CompactSpace
from tests.support.networks import small_network
from tests.support.worlds import AXES, macs_keep, random_ranking, small_space


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("seed", range(5))
def test_a_decoded_policy_uses_the_budget_and_stays_within(keep: float, seed: int) -> None:
    space = small_space()
    direction = np.random.default_rng(seed).random(len(space.dimensions))
    policy = decode(space, list(direction), Budgets((Budget("macs_keep", keep),)), macs_keep(space))
    used = space.sketch(policy).macs / space.structure.macs
    assert 0.9 * keep <= used <= keep


def test_the_sketch_that_is_priced_is_the_plan_that_is_built() -> None:
    space = small_space()
    for seed in range(10):
        policy = space.along(list(np.random.default_rng(seed).random(len(space.dimensions))), 0.2 * seed)
        assert space.plan(policy).apply_to(space.structure) == space.sketch(policy)


def test_every_start_lies_on_the_budget() -> None:
    space = small_space()
    for direction in space.starts():
        policy = decode(space, direction, Budgets((Budget("macs_keep", 0.5),)), macs_keep(space))
        assert space.sketch(policy).macs <= 0.5 * space.structure.macs


def test_an_impossible_budget_names_the_best_reachable_value() -> None:
    space = small_space()
    least = space.sketch(space.along([1.0] * len(space.dimensions), 2)).macs / space.structure.macs
    with pytest.raises(ImpossibleBudget) as refused:
        decode(space, [1.0] * len(space.dimensions), Budgets((Budget("macs_keep", 0.001),)), macs_keep(space))
    assert refused.value.facts["best_reachable"] == pytest.approx(least)
    assert f"{least:.4g}" in refused.value.detail


def test_a_budget_above_the_original_leaves_it_whole() -> None:
    space = small_space()
    policy = decode(space, [1.0] * len(space.dimensions), Budgets((Budget("macs_keep", 1.5),)), macs_keep(space))
    assert space.sketch(policy) == space.structure


def test_several_budgets_all_hold_and_the_binding_one_is_named() -> None:
    space = small_space()
    budgets = Budgets((Budget("macs_keep", 0.8), Budget("params", 30000.0)))

    def price(structures: Sequence[Structure]) -> Array:
        return np.asarray([[s.macs / space.structure.macs, s.params] for s in structures], dtype=float)

    policy = decode(space, [1.0] * len(space.dimensions), budgets, price)
    costs = [float(cost) for cost in price([space.sketch(policy)])[0]]
    assert budgets.met(costs) and budgets.binding(costs).metric == "params"


def test_a_price_that_is_not_monotone_does_not_mislead() -> None:
    """An even number of heads in any block raises the price by 1.

    Bisection would fail on such a price. The decoder does not.
    """
    space = small_space()

    def price(structures: Sequence[Structure]) -> Array:
        spikes = [any(b.attention.heads % 2 == 0 for b in s.blocks) for s in structures]  # type: ignore[union-attr]
        return np.asarray(
            [[s.macs / space.structure.macs + spike] for s, spike in zip(structures, spikes, strict=True)]
        )

    policy = decode(space, [0.5] * len(space.dimensions), Budgets((Budget("macs_keep", 0.7),)), price)
    assert price([space.sketch(policy)])[0, 0] <= 0.7


def test_the_same_quantity_cannot_be_limited_twice() -> None:
    with pytest.raises(InvalidRequest, match="macs_keep"):
        Budgets((Budget("macs_keep", 0.5), Budget("macs_keep", 0.6)))


def test_keeps_are_fractions_and_mixes_need_comparable_scores() -> None:
    space = small_space()
    smallest = space.along([1.0] * len(space.dimensions), 2)
    keeps = [smallest.heads, smallest.qk, smallest.v, smallest.neurons, *smallest.tokens]
    assert all(0 < keep < 1 for keep in keeps)
    assert space.along([1.0] * len(space.dimensions), 0) == Policy(tokens=(1.0,) * 3, heads_mix=1.0, neurons_mix=1.0)


def test_no_block_loses_its_last_head_or_all_neurons() -> None:
    space = small_space()
    for block in space.sketch(space.along([1.0] * len(space.dimensions), 2)).blocks:
        assert block.attention is not None and block.attention.heads >= 1
        assert block.mlp is not None and block.mlp.neurons >= 16


def test_every_direction_ends_in_the_same_smallest_network() -> None:
    space, random = small_space(), np.random.default_rng(3)
    ends = {space.sketch(space.along(list(random.random(len(space.dimensions))), 2)).key for _ in range(20)}
    assert len(ends) == 1


def test_keeping_everything_removes_nothing_from_odd_sizes() -> None:
    structure = small_network(embed_dim=36, num_heads=2, mlp_ratio=1.5).structure
    space = CompactSpace(structure, random_ranking(structure), AXES)
    assert space.sketch(space.along([0.5] * len(space.dimensions), 0)) == structure
