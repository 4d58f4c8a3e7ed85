"""Tests of int8 as an additional dimension of any space."""

from collections.abc import Sequence

import numpy as np
import pytest

from models.structure import LAYERS, Precision, Structure
from search.budgets import Budget, Budgets
from search.loop.decode import decode
from search.methods import METHODS
from search.ranking import Array, unranked
from search.spaces import space_of
from search.spaces.precision import LEFT_OUT, Member, PrecisionSpace
from tests.support.networks import small_network
from tests.support.worlds import small_space

BOTH: tuple[Precision, ...] = ("fp32", "int8")


def order_of(blocks: int, seed: int = 0) -> list[Member]:
    members = [(place, layer) for place in range(blocks) for layer in LAYERS]
    np.random.default_rng(seed).shuffle(members)
    return members


def space(precisions: tuple[Precision, ...] = BOTH) -> PrecisionSpace:
    inner = small_space()
    return PrecisionSpace(inner, order_of(len(inner.structure.blocks)), precisions)


def test_a_sketch_is_the_structure_of_the_plan() -> None:
    mine, random = space(), np.random.default_rng(1)
    for t in np.linspace(0, 2, 9):
        policy = mine.along(list(random.random(len(mine.dimensions))), float(t))
        assert mine.plan(policy).apply_to(mine.structure) == mine.sketch(policy)


def test_blocks_that_are_gone_take_their_layers_along() -> None:
    structure = small_network(depth=4).structure
    inner = space_of(METHODS["mdc"], structure, unranked(structure))
    mine = PrecisionSpace(inner, order_of(4), BOTH)
    policy = mine.along([1.0] * len(mine.dimensions), 1.5)
    assert mine.plan(policy).apply_to(structure) == mine.sketch(policy)


def test_either_end_of_the_dimension_is_one_precision_for_all_layers() -> None:
    mine, inner = space(), [0.5] * len(small_space().dimensions)
    fp32, int8 = mine.along([*inner, 0.2], 1.0), mine.along([*inner, 0.8], 1.0)
    assert mine.plan(fp32).precision == "fp32" and mine.sketch(fp32) == mine.inner.sketch(fp32)
    assert mine.plan(int8).precision == "int8" and not any(block.exact for block in mine.plan(int8).blocks)


def test_the_layers_that_bear_it_best_are_quantised_first() -> None:
    mine = space()
    order = order_of(len(mine.structure.blocks))
    exact = mine.exact(mine.along([0.5] * len(mine.dimensions), 0.3))
    assert exact is not None
    left = {(place, layer) for place, layers in enumerate(exact) for layer in layers}
    assert left == set(order[len(order) // 2 :])


def test_the_precision_of_a_direction_stays_while_it_is_pruned() -> None:
    mine, direction = space(), [0.5] * len(space().dimensions)
    assert len({mine.along(direction, t).int8 for t in (0.0, 0.4, 1.0)}) == 1


def test_every_direction_ends_in_the_same_smallest_int8_network() -> None:
    mine, random = space(), np.random.default_rng(2)
    ends = {mine.sketch(mine.along(list(random.random(len(mine.dimensions))), 2.0)).key for _ in range(5)}
    assert len(ends) == 1
    assert mine.sketch(mine.along([0.0] * len(mine.dimensions), 2.0)).blocks[0].precision == "int8"


def test_where_only_int8_is_wanted_at_most_a_quarter_stays_in_fp32() -> None:
    mine = space(("int8",))
    for x in (0.0, 0.5, 1.0):
        policy = mine.along([*[0.5] * (len(mine.dimensions) - 1), x], 0.0)
        plan = mine.plan(policy)
        exact = sum(len(block.exact) for block in plan.blocks)
        assert plan.precision == "int8" and exact <= LEFT_OUT * 4 * len(plan.blocks)


def test_for_a_device_that_prices_all_layers_alike_none_is_left_out() -> None:
    inner = small_space()
    mine = PrecisionSpace(inner, order_of(len(inner.structure.blocks)), ("int8",), left_out=0.0)
    assert {mine.along([0.5] * len(inner.dimensions) + [x], 0.0).int8 for x in (0.0, 0.4, 1.0)} == {1.0}


def test_starts_try_int8_everywhere_and_fp32_where_it_is_allowed() -> None:
    assert {start[-1] for start in space(("int8",)).starts()} == {1.0}
    both = space().starts()
    assert {start[-1] for start in both[:2]} == {0.0, 1.0} and all(len(s) == len(space().dimensions) for s in both)


def test_a_policy_of_int8_keeps_more_within_the_same_budget() -> None:
    """Price a MAC in int8 at a third of a MAC in fp32."""
    mine = space()
    weights = {"int8": 1 / 3, "fp32": 1.0}

    def price(structures: Sequence[Structure]) -> Array:
        costs = [[sum(op.macs * weights[op.precision] for op in s.ops()) / mine.structure.macs] for s in structures]
        return np.asarray(costs)

    budgets, inner = Budgets((Budget("macs_keep", 0.45),)), [1.0] * (len(mine.dimensions) - 1)
    fp32, int8 = (mine.sketch(decode(mine, [*inner, x], budgets, price)) for x in (0.0, 1.0))
    assert price([fp32, int8]).max() <= 0.45
    assert int8.macs > 1.3 * fp32.macs


def test_points_that_mean_the_same_are_one_point() -> None:
    mine = space()
    width = len(mine.dimensions) - 1
    low, lower, high, higher = (mine.canonical(np.asarray([[0.5] * width + [x]]))[0] for x in (0.25, 0.0, 0.75, 1.0))
    assert np.array_equal(low, lower) and np.array_equal(high, higher) and not np.array_equal(low, high)
    assert low[:-1] == pytest.approx(mine.inner.canonical(np.asarray([[0.5] * width]))[0])
