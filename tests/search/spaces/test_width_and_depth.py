"""Tests of two further axes of the compact space: the embedding width and the sublayers of blocks.

Only methods that name these axes search them.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from models.structure import Structure, TokenPlan
from search.criteria import rank
from search.methods import METHODS
from search.ranking import Ranking
from search.spaces import space_of
from search.spaces.compact import CompactSpace
from search.spaces.sublayers import Halves
from search.token_rule import TokenRule
from tests.support.networks import images_for, small_network
from tests.support.worlds import AXES, random_ranking

ALL = (*AXES, "embed", "halves")
DEPTH = 8


def structure() -> Structure:
    return small_network(depth=DEPTH).structure


def full_ranking(shape: Structure, seed: int = 0) -> Ranking:
    random = np.random.default_rng(seed)
    plain = random_ranking(shape, seed)
    blocks = tuple(dataclasses.replace(block, halves=random.random(2)) for block in plain.blocks)
    return dataclasses.replace(plain, blocks=blocks, embed=random.random(shape.width))


def space_with(halves: np.ndarray, axes: tuple[str, ...] = ALL, rule: TokenRule | None = None) -> CompactSpace:
    """Return a space whose ranking gives these scores (DEPTH, 2) to the sublayers."""
    shape = structure()
    plain = full_ranking(shape)
    blocks = tuple(dataclasses.replace(b, halves=s) for b, s in zip(plain.blocks, halves, strict=True))
    return CompactSpace(shape, dataclasses.replace(plain, blocks=blocks), axes, rule)


def descending(*lowest: tuple[int, int]) -> np.ndarray:
    """Return scores in which these sublayers are the lowest, in this order."""
    scores = np.ones((DEPTH, 2))
    for place, half in enumerate(lowest):
        scores[half] = 0.01 * (place + 1)
    return scores


@pytest.mark.parametrize("rule", [TokenRule(), TokenRule("drop", "start", "cumulative", (0.125, 0.25, 0.5, 0.625))])
def test_the_sketch_that_is_priced_is_the_plan_that_is_built(rule: TokenRule) -> None:
    shape = structure()
    for seed in range(25):
        space = CompactSpace(shape, full_ranking(shape, seed), ALL, rule)
        direction = np.random.default_rng(seed).random(len(space.dimensions))
        policy = space.along(list(direction), 2 * seed / 24)
        assert space.plan(policy).apply_to(shape) == space.sketch(policy)


def test_axes_that_are_not_named_stay_as_they_were() -> None:
    """Check this also when the ranking has scores for these axes."""
    shape = structure()
    plain, named = CompactSpace(shape, full_ranking(shape), AXES), CompactSpace(shape, full_ranking(shape), ALL)
    assert set(named.dimensions) - set(plain.dimensions) == {"embed", "halves"}
    assert plain.starts() == CompactSpace(shape, random_ranking(shape), AXES).starts()
    smallest = plain.sketch(plain.along([1.0] * len(plain.dimensions), 2))
    assert smallest.width == shape.width and len(smallest.blocks) == DEPTH
    assert all(block.attention and block.mlp for block in smallest.blocks)


def test_axes_without_scores_are_left_out() -> None:
    shape = structure()
    assert (
        CompactSpace(shape, random_ranking(shape), ALL).dimensions
        == CompactSpace(shape, random_ranking(shape), AXES).dimensions
    )


def test_the_best_embedding_dims_stay_in_multiples_of_eight() -> None:
    shape = structure()
    ranking = full_ranking(shape)
    space = CompactSpace(shape, ranking, ("embed",))
    assert space.dimensions == ["embed"]
    for t in (0.3, 0.5, 1.1, 2.0):
        plan = space.plan(space.along([1.0], t))
        assert len(plan.embed) % 8 == 0 and len(plan.embed) < 48
        assert ranking.embed is not None and set(plan.embed) == set(np.argsort(-ranking.embed)[: len(plan.embed)])
    assert len(space.plan(space.along([1.0], 2)).embed) == 16  # a quarter of the width, rounded up to the multiple


def test_the_lowest_halves_go_first_and_empty_blocks_with_them() -> None:
    space = space_with(descending((5, 1), (5, 0), (2, 0)), ("halves",))
    kept = {
        keep: space.plan(dataclasses.replace(space.along([0.0], 0), halves=keep))
        for keep in (15 / 16, 14 / 16, 13 / 16)
    }
    assert [b.source for b in kept[15 / 16].blocks if not b.neurons] == [5]
    assert [b.source for b in kept[14 / 16].blocks] == [0, 1, 2, 3, 4, 6, 7]
    assert [b.source for b in kept[13 / 16].blocks if not b.heads] == [2]


def test_one_attention_always_stays() -> None:
    halves = Halves(structure(), [np.array([0.0, 1.0])] * DEPTH)
    gone = halves.gone(1e-6)
    assert len(gone) == 2 * DEPTH - 1 and sum(side == 0 for _, side in gone) == DEPTH - 1


def stages(space: CompactSpace, keep: float) -> dict[int, int]:
    """Return the number of patches that stay, by block."""
    policy = dataclasses.replace(space.along([1.0] * len(space.dimensions), 0), tokens=(0.8, 0.6, 0.4), halves=keep)
    plan = space.plan(policy)
    plan.apply_to(space.structure)
    return {b.source: b.tokens.kept for b in plan.blocks if b.tokens is not None}


def test_a_token_stage_moves_on_from_a_block_whose_attention_is_gone() -> None:
    """The token stages are at blocks 2, 4 and 6 of 8. The ranking removes the attention of some of these blocks."""
    axes = ("tokens", "halves")
    counts = list(stages(space_with(descending(), axes), 1.0).values())
    assert list(stages(space_with(descending(), axes), 1.0)) == [2, 4, 6]
    assert stages(space_with(descending((2, 0)), axes), 15 / 16) == dict(zip([3, 4, 6], counts, strict=True))
    assert stages(space_with(descending((2, 0), (3, 0)), axes), 14 / 16) == dict(zip([4, 5, 6], counts, strict=True))
    assert stages(space_with(descending((6, 0), (7, 0)), axes), 14 / 16) == dict(zip([2, 4], counts[:2], strict=True))


def test_a_stage_at_a_start_needs_an_attention_before_it_and_may_stand_where_its_own_is_gone() -> None:
    rule = TokenRule("drop", "start", "cumulative", (0.125, 0.5, 0.75))
    axes = ("tokens", "halves")
    assert list(stages(space_with(descending((0, 0), (4, 0)), axes, rule), 14 / 16)) == [2, 4, 6]


def test_halves_of_blocks_whose_scores_do_not_compare_are_left_alone() -> None:
    shape = structure()
    ranking = dataclasses.replace(full_ranking(shape), across_blocks=False)
    assert "halves" not in CompactSpace(shape, ranking, ALL).dimensions


def test_a_network_of_every_axis_runs_and_is_the_sketch() -> None:
    """Check the path from the scores of the estimate to a physically pruned network with recovery."""
    network = small_network(depth=4, img_size=32)
    images = images_for(network, 8)
    statistics = network.statistics(images, {"fisher"})
    space = space_of(METHODS["up-vit"], network.structure, rank("kl", network.weights(), statistics))
    assert {"embed", "qk", "v", "neurons", "halves"} <= set(space.dimensions)
    policy = space.along([1.0] * len(space.dimensions), 0.7)
    small = network.pruned(space.plan(policy), statistics)
    assert small.structure == space.sketch(policy)
    assert small.outputs(images).isfinite().all() and small.outputs(images).shape == (8, 7)
    halves = sum((b.attention is None) + (b.mlp is None) for b in small.structure.blocks)
    assert small.structure.width < 48 and (halves or len(small.structure.blocks) < 4)


def test_a_moved_stage_is_a_stage_like_any_other() -> None:
    plan = space_with(descending((2, 0)), ("tokens", "halves"))
    policy = dataclasses.replace(plan.along([1.0] * len(plan.dimensions), 0), tokens=(0.5, 1.0, 1.0), halves=15 / 16)
    (kept,) = [block.tokens for block in plan.plan(policy).blocks if block.tokens is not None]
    assert kept == TokenPlan(18)


def test_reconstruction_finds_the_silent_half_and_the_dim_that_no_block_writes() -> None:
    network = small_network(depth=3)
    blocks: list[Any] = network.blocks()
    with torch.no_grad():
        for block in blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight[17] = 0  # a constant is no loss, because the bias carries it
        blocks[1].attn.proj.weight.zero_()
        blocks[2].mlp.fc2.weight.mul_(1e-3)
    ranking = rank("reconstruction", network.weights(), network.statistics(images_for(network, 32)))
    assert ranking.embed is not None and int(ranking.embed.argmin()) == 17 and ranking.embed[17] == 0
    halves = np.stack([block.halves for block in ranking.blocks if block.halves is not None])
    assert halves.shape == (3, 2)
    assert [divmod(int(i), 2) for i in halves.ravel().argsort()[:2]] == [(1, 0), (2, 1)]


def test_joint_may_narrow_the_width_and_drop_halves() -> None:
    network = small_network(depth=3)
    ranking = rank("reconstruction", network.weights(), network.statistics(images_for(network, 32)))
    space = space_of(METHODS["joint"], network.structure, ranking)
    names = space.dimensions
    eager = [float(name in ("embed", "halves")) for name in names]
    small = space.sketch(space.along(eager, 1.0))
    assert small.width < network.structure.width
    assert sum(block.attention is not None for block in small.blocks) < 3 or len(small.blocks) < 3


@pytest.mark.parametrize("seed", range(5))
def test_what_stands_for_a_direction_means_the_same(seed: int) -> None:
    space = CompactSpace(structure(), full_ranking(structure()), ALL)
    random = np.random.default_rng(seed)
    points = random.random((20, len(space.dimensions)))
    for point, one in zip(points, space.canonical(points), strict=True):
        for t in (0.3, 1.0, 1.6):
            same, given = (dataclasses.asdict(space.along(list(x), t)) for x in (one, point))
            assert all(np.allclose(same[name], given[name]) for name in given)
    keeps = [
        i for i, name in enumerate(space.dimensions) if not name.endswith("mix") and name not in ("embed", "halves")
    ]
    halved = points.copy()
    halved[:, keeps] *= 0.5
    quiet = np.where([name in ("embed", "halves") for name in space.dimensions], 0.0, 1.0)
    assert np.allclose(space.canonical(points * quiet), space.canonical(halved * quiet))


def test_rotated_networks_start_with_what_costs_least_there() -> None:
    """Every axis is cut from the first start on, and neurons stay alike in all blocks as well as by their scores."""
    shape = structure()
    rotated = dataclasses.replace(full_ranking(shape), rotated=("qk", "v", "embed"))
    space = CompactSpace(shape, rotated, ALL)
    first, second, *_ = (dict(zip(space.dimensions, start, strict=True)) for start in space.starts())
    assert min(first["qk"], first["v"], first["neurons"], first["embed"]) > 0 and first["neurons_mix"] == 0.5
    assert second["embed"] == 0 and second["neurons"] > 0
    assert space.starts() != CompactSpace(shape, full_ranking(shape), ALL).starts()
