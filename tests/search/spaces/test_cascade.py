"""Tests of CP-ViT's cascade.

A removed token stays removed. Layers that attend far remove more tokens. The cascade reaches the saving that the paper
reports.
"""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from models.errors import InvalidRequest
from models.loading.load_model import untrained
from models.structure import HeadPlan, Structure
from search.methods import METHODS, check_suits
from search.policy import Policy
from search.ranking import Array, unranked
from search.spaces import space_of
from search.spaces.cascade import CascadeSpace
from tests.support.cascades import deit_structure, space_with
from tests.support.networks import images_for, small_network
from tests.support.worlds import random_ranking

METHOD = METHODS["cp-vit"]


def cascade(
    structure: Structure, ranges: Array | None = None, depths: tuple[float, ...] = METHOD.tokens.depths
) -> CascadeSpace:
    return space_with(structure, dataclasses.replace(random_ranking(structure, seed=1), ranges=ranges), depths)


def small_cascade(**options: Any) -> CascadeSpace:
    return cascade(small_network(depth=6, **options).structure, np.linspace(0.9, 0.1, 6))


def random_policies(space: CascadeSpace, count: int) -> list[Policy]:
    random = np.random.default_rng(2)
    return [space.along(list(random.random(len(space.dimensions))), 2 * i / (count - 1)) for i in range(count)]


def head_indices(heads: tuple[HeadPlan, ...]) -> list[int]:
    return [head.v[0] // 16 for head in heads]


def test_the_method_searches_in_it() -> None:
    structure = small_network(depth=6).structure
    space = space_of(METHOD, structure, unranked(structure))
    assert isinstance(space, CascadeSpace) and space.dimensions == ["tokens0", "tokens1", "heads"]


@pytest.mark.parametrize("options", [{}, {"num_heads": 6}, {"class_token": False, "global_pool": "avg"}])
def test_the_sketch_that_is_priced_is_the_plan_that_is_built(options: dict[str, Any]) -> None:
    space = small_cascade(**options)
    for policy in random_policies(space, 12):
        assert space.plan(policy).apply_to(space.structure) == space.sketch(policy)


def test_what_leaves_stays_away() -> None:
    space = small_cascade(num_heads=6, embed_dim=96)
    for policy in random_policies(space, 12):
        plan = space.plan(policy)
        for before, after in pairwise(plan.blocks):
            assert set(head_indices(after.heads)) <= set(head_indices(before.heads))
        counts = space.token_counts(policy)
        assert counts == sorted(counts, reverse=True)
        assert plan.blocks[0].tokens is None, "nothing has attended before the first block"
        kept = [block.tokens for block in plan.blocks if block.tokens is not None]
        assert all((t.at, t.score, t.reducer) == ("start", "cumulative", "drop") for t in kept)


def test_a_cut_head_does_not_come_back_although_it_scores_best_later() -> None:
    structure = small_network(depth=3).structure
    ranking = unranked(structure)
    first, second, third = ranking.blocks
    blocks = (
        dataclasses.replace(first, heads=np.array([1.0, 2.0, 3.0])),
        dataclasses.replace(second, heads=np.array([9.0, 2.0, 3.0])),
        dataclasses.replace(third, heads=np.array([9.0, 4.0, 3.0])),
    )
    space = CascadeSpace(structure, dataclasses.replace(ranking, blocks=blocks), METHOD.axes, METHOD.tokens)
    policy = Policy(heads=0.2, tokens=(1.0,))
    assert space.head_counts(policy) == [2, 1, 1]
    assert [head_indices(block.heads) for block in space.plan(policy).blocks] == [[1, 2], [2], [2]]


def test_far_looking_layers_remove_more() -> None:
    structure = small_network(depth=6, img_size=128).structure
    policy = Policy(tokens=(0.25,), heads=1.0)
    removed = {}
    for name, ranges in {"deep": np.linspace(0.9, 0.1, 6), "flat": None, "early": np.linspace(0.1, 0.9, 6)}.items():
        space = cascade(structure, ranges, depths=(1.0,))
        counts = space.token_counts(policy)
        assert counts[-1] == 64, "how much in all does not depend on where"
        removed[name] = [a - b for a, b in pairwise(counts)]
    assert removed["deep"] == sorted(removed["deep"]) and removed["deep"][-1] > 2 * removed["deep"][0]
    assert removed["early"] == sorted(removed["early"], reverse=True)
    assert max(removed["flat"]) - min(removed["flat"]) <= 1
    looks_far = 1 - np.linspace(0.9, 0.1, 6)[1:]
    shares = np.array(removed["deep"]) / sum(removed["deep"])
    np.testing.assert_allclose(shares, looks_far / looks_far.sum(), atol=0.01)


def test_local_layers_still_remove_something() -> None:
    space = cascade(small_network(depth=6, img_size=128).structure, np.ones(6), depths=(1.0,))
    counts = space.token_counts(Policy(tokens=(0.5,)))
    assert counts[-1] == 128 and len(set(counts)) == 6


def test_along_a_direction_everything_then_less_then_the_smallest() -> None:
    space = small_cascade()
    random = np.random.default_rng(0)
    whole = space.along([0.5, 0.2, 0.3], 0)
    assert space.sketch(whole) == space.structure
    assert space.along([1.0, 0.0, 0.0], 1) == Policy(heads=1.0, tokens=(0.25, 1.0))
    ends = {space.sketch(space.along(list(random.random(3)), 2)).key for _ in range(10)}
    assert len(ends) == 1
    macs = [space.sketch(space.along([0.5, 0.2, 0.3], t)).macs for t in np.linspace(0, 2, 20)]
    assert macs == sorted(macs, reverse=True)
    for direction in space.starts():
        assert len(direction) == 3 and max(direction) > 0
    filled = [space.sketch(p).macs for p in space.fuller(space.along([1.0, 1.0, 1.0], 1), 6)]
    assert filled == sorted(filled) and filled[-1] > filled[0]


@pytest.mark.parametrize("ranges", [None, np.linspace(0.9, 0.1, 12), np.linspace(0.6, 0.3, 12)])
def test_half_of_the_patches_by_block_four_take_over_forty_percent_of_deit_s(ranges: Array | None) -> None:
    """Check the paper's "50 % of patches, over 40 % of FLOPs" with the structure alone."""
    structure = deit_structure()
    assert structure.macs == pytest.approx(4.6e9, rel=0.01)
    space = cascade(structure, ranges)
    policy = Policy(tokens=(0.5, 1.0))
    counts = space.token_counts(policy)
    assert counts[0] == 196 and counts[3:] == [98] * 9 and 196 > counts[1] > counts[2] > 98
    assert space.sketch(policy).macs < 0.6 * structure.macs
    heads = dataclasses.replace(policy, heads=0.5)
    assert space.head_counts(heads)[-1] == 3 and space.head_counts(heads)[0] == 6
    assert space.sketch(heads).macs < 0.55 * structure.macs


def test_a_network_without_room_for_a_cascade_is_refused() -> None:
    structure = small_network(depth=1).structure
    with pytest.raises(InvalidRequest, match="second block"):
        check_suits(METHOD, structure)
    with pytest.raises(InvalidRequest, match="second block"):
        space_of(METHOD, structure, unranked(structure))
    check_suits(METHODS["joint"], structure)


def test_a_method_of_tokens_alone_needs_a_grid_that_may_shrink() -> None:
    structure = untrained("pvt_v2_b0").structure
    with pytest.raises(InvalidRequest, match="token grid may shrink"):
        check_suits(METHODS["spvit"], structure)
    check_suits(METHODS["mdc"], structure)


def test_a_method_that_chooses_tokens_otherwise_than_a_graph_can_is_refused() -> None:
    structure = untrained("eva02_tiny_patch14_224", depth=4).structure
    for method in ("spvit", "cp-vit"):
        with pytest.raises(InvalidRequest, match="'joint' or 'mdc'"):
            check_suits(METHODS[method], structure)
    check_suits(METHODS["joint"], structure)


def test_the_last_span_of_a_short_network_takes_all_tokens() -> None:
    """In a network of four blocks, a third of the depth ends before the second block.

    Therefore only one span is left.
    """
    space = cascade(small_network(depth=4).structure)
    assert space.dimensions == ["tokens0", "heads"]


def test_the_pruned_network_runs_and_agrees_with_its_structure() -> None:
    network = small_network(depth=3)
    space = cascade(network.structure)
    small = network.pruned(space.plan(Policy(heads=0.4, tokens=(0.3,))), network.statistics(images_for(network, 8)))
    assert small.outputs(images_for(network, 2)).shape == (2, 7)
    assert small.structure.macs < 0.7 * network.structure.macs
