"""Tests of MDC's own space: 25 numbers for DeiT-S, each of them in [0.5, 1]."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from models.errors import InvalidRequest, UnknownName
from models.structure import Structure
from search.budgets import Budget, Budgets
from search.loop.decode import decode
from search.methods import METHODS, space_for
from search.policy import Policy
from search.ranking import Array, unranked
from search.spaces import SPACES, space_of
from search.spaces.compact import CompactSpace
from search.spaces.paper import PaperSpace
from search.token_rule import TokenRule
from tests.support.cascades import deit_structure
from tests.support.networks import small_network
from tests.support.worlds import random_ranking

# The policy that the paper publishes for DeiT-S, with rounded numbers.
NEURON_SPARSITY = (0.1224, 0.0017, 0.0120, 0.4906, 0.1039, 0.3276, 0.0201, 0.2638, 0.0247, 0.3720, 0.3380, 0.3245)
HEAD_SPARSITY = (0.0764, 0.0549, 0.1164, 0.2119, 0.1028, 0.0406, 0.0793, 0.0857, 0.2767, 0.1664, 0.1345, 0.1597)
TOKEN_SPARSITY = 0.4881


def paper_space(depth: int = 4) -> PaperSpace:
    structure = small_network(depth=depth).structure
    return PaperSpace(structure, random_ranking(structure), TokenRule())


def test_deit_s_has_twenty_five_numbers() -> None:
    structure = deit_structure()
    space = PaperSpace(structure, unranked(structure), TokenRule())
    assert len(space.dimensions) == 25
    halved = space.sketch(space.along([1.0] * 25, 1))
    places = [i for i, block in enumerate(halved.blocks) if block.reduction is not None]
    assert places == [3, 6, 9], "blocks 4, 7, 10, counted from 1"
    assert [b.mlp.neurons for b in halved.blocks if b.mlp] == [768] * 12
    assert [b.attention.heads for b in halved.blocks if b.attention] == [3] * 12
    assert [b.reduction.kept for b in halved.blocks if b.reduction] == [98, 49, 24]


def test_each_number_is_its_own() -> None:
    """Change one dimension at a time. Only its own block and axis become smaller, down to a half."""
    space = paper_space()
    for i, name in enumerate(space.dimensions):
        direction = [0.0] * len(space.dimensions)
        direction[i] = 0.7
        policy = space.along(direction, 1)
        keeps = [*policy.neurons_by_block, *policy.heads_by_block, *policy.tokens]
        assert keeps[i] == pytest.approx(0.5) and keeps.count(1.0) == len(keeps) - 1, name
        small = space.sketch(policy)
        changed = [
            j for j, (a, b) in enumerate(zip(small.blocks, space.structure.blocks, strict=True)) if a.mlp != b.mlp
        ]
        assert changed == ([i] if name.startswith("neurons") else [])


def test_no_number_goes_below_a_half_and_all_directions_end_there() -> None:
    space, random = paper_space(), np.random.default_rng(1)
    for t in (0.5, 1.0, 1.5, 2.0):
        policy = space.along(list(random.random(9)), t)
        keeps = [*policy.neurons_by_block, *policy.heads_by_block, *policy.tokens]
        assert min(keeps) >= 0.5 and max(keeps) <= 1
    assert set(keeps) == {0.5}
    assert space.sketch(space.along(list(random.random(9)), 0)) == space.structure


def test_the_sketch_that_is_priced_is_the_plan_that_is_built() -> None:
    space, random = paper_space(), np.random.default_rng(0)
    for i in range(10):
        policy = space.along(list(random.random(9)), 0.2 * i)
        assert space.plan(policy).apply_to(space.structure) == space.sketch(policy)


def test_the_best_members_of_each_block_stay() -> None:
    space = paper_space()
    policy = space.along([1.0] * 9, 1)
    for scores, block in zip(space.ranking.blocks, space.plan(policy).blocks, strict=True):
        best = sorted(np.argsort(-scores.neurons)[: len(block.neurons)].tolist())
        assert list(block.neurons) == best


def test_a_decoded_policy_uses_the_budget_and_stays_within() -> None:
    space, random = paper_space(), np.random.default_rng(4)

    def price(structures: Sequence[Structure]) -> Array:
        return np.asarray([[s.macs / space.structure.macs] for s in structures])

    for direction in [*space.starts(), list(random.random(9))]:
        policy = decode(space, direction, Budgets((Budget("macs_keep", 0.7),)), price)
        assert 0.64 < space.sketch(policy).macs / space.structure.macs <= 0.7


def test_the_published_policy_of_deit_s_lies_in_this_space() -> None:
    """The paper's 25 sparsities give the paper's MACs with the fused token, if int() truncates the number of heads.

    This project rounds instead. Then a sparsity of a tenth removes none of six heads.
    """
    structure = deit_structure()
    space = PaperSpace(structure, unranked(structure), TokenRule())
    policy = Policy(
        neurons_by_block=tuple(1 - x for x in NEURON_SPARSITY),
        heads_by_block=tuple(1 - x for x in HEAD_SPARSITY),
        tokens=(1 - TOKEN_SPARSITY,),
    )
    rounded = space.sketch(policy).block_macs
    truncated = tuple(int(6 * keep) / 6 for keep in policy.heads_by_block)
    policy = dataclasses.replace(policy, heads_by_block=truncated)
    assert space.sketch(policy).block_macs == pytest.approx(1_875_195_648, rel=0.01)
    assert 1.03 < rounded / 1_875_195_648 < 1.08


def test_mdc_searches_in_both_and_the_others_in_their_own() -> None:
    structure = small_network(depth=2).structure
    ranking = unranked(structure)
    assert isinstance(space_of(METHODS["mdc"], structure, ranking), CompactSpace)
    assert isinstance(space_of(METHODS["mdc"], structure, ranking, "paper"), PaperSpace)
    with pytest.raises(InvalidRequest, match=r"not search in space 'paper'. Use one of these spaces: compact"):
        space_for(METHODS["joint"], "paper")
    with pytest.raises(UnknownName, match="paper"):
        space_for(METHODS["mdc"], "papers")


def test_every_space_that_a_method_names_exists() -> None:
    assert {name for method in METHODS.values() for name in method.spaces} <= SPACES.keys()
