"""Tests of the choice of stages that get selectors.

Similar neighbouring stages become one, and no block becomes more expensive.
"""

import dataclasses

import pytest

from models.structure import Plan, Structure, TokenPlan, identity
from models.structure.selector_plan import merge_stages, with_score
from tests.support.networks import small_network


@pytest.fixture(scope="module")
def structure() -> Structure:
    return small_network(depth=6, img_size=96, patch_size=8).structure  # 144 patch tokens


def keeping(structure: Structure, kept: dict[int, int]) -> Plan:
    whole = identity(structure)
    blocks = (
        dataclasses.replace(
            b, tokens=TokenPlan(kept[b.source], "weighted", "start", "attention") if b.source in kept else None
        )
        for b in whole.blocks
    )
    return dataclasses.replace(whole, blocks=tuple(blocks))


def kept_by(plan: Plan) -> dict[int, int]:
    return {block.source: block.tokens.kept for block in plan.blocks if block.tokens is not None}


@pytest.mark.parametrize(
    ("kept", "merged"),
    [
        ({1: 100, 3: 60, 5: 20}, {1: 100, 3: 60, 5: 20}),
        ({1: 100, 3: 60, 5: 55}, {1: 100, 3: 55}),
        ({1: 100, 3: 95, 5: 20}, {1: 95, 5: 20}),
        ({1: 100, 3: 95, 5: 92}, {1: 92}),
        ({1: 100, 3: 95, 5: 87}, {1: 100, 3: 87}),  # from the last stage on: 95 joins 87, and 100 is then too far
        ({1: 100, 3: 90}, {1: 100, 3: 90}),
        ({}, {}),
    ],
)
def test_similar_neighbours_become_one_stage(
    structure: Structure, kept: dict[int, int], merged: dict[int, int]
) -> None:
    plan = merge_stages(keeping(structure, kept))
    assert kept_by(plan) == merged
    assert all(block.tokens is None or block.tokens.reducer == "weighted" for block in plan.blocks)


def test_no_block_sees_more_tokens_after_merging(structure: Structure) -> None:
    plan = with_score(keeping(structure, {1: 100, 2: 97, 4: 50, 5: 47}), "selector")
    before, after = plan.apply_to(structure), merge_stages(plan).apply_to(structure)
    pairs = list(zip(before.blocks, after.blocks, strict=True))
    assert all(mine.tokens_out <= other.tokens_out for other, mine in pairs)
    assert after.macs < before.macs


def test_another_score_keeps_the_same_counts(structure: Structure) -> None:
    plan = keeping(structure, {1: 100, 3: 60})
    selecting = with_score(plan, "selector")
    assert kept_by(selecting) == kept_by(plan)
    assert {b.tokens.score for b in selecting.blocks if b.tokens} == {"selector"}
    assert with_score(selecting, "attention") == plan
    assert selecting.apply_to(structure).macs > plan.apply_to(structure).macs  # the cost of the selectors
