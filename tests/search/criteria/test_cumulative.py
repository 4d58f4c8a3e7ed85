"""Tests of CP-ViT's head score on planted heads.

One head attends to all tokens equally, another head attends to a single token.
"""

from typing import Any

import numpy as np
import pytest
import torch

from models.errors import InvalidRequest
from models.networks.torch_network import TorchNetwork
from models.statistics.statistics import Statistics
from search.criteria import rank
from tests.support.networks import images_for, small_network

BLIND, PICKY, MUTE = 1, 2, 0


@pytest.fixture(scope="module")
def planted() -> tuple[TorchNetwork, Statistics]:
    """Build a network without prefix tokens and with planted heads.

    In every block, the attention of head 1 is uniform and the attention of head 2 is very sharp. Head 0 of block 0
    gives zeros, which its attention does not show.
    """
    network = small_network(depth=3, seed=5, class_token=False, global_pool="avg")
    blocks: list[Any] = network.blocks()
    with torch.no_grad():
        for block in blocks:
            qkv = block.attn.qkv
            qkv.weight[16 * BLIND : 16 * (BLIND + 1)], qkv.bias[16 * BLIND : 16 * (BLIND + 1)] = 0, 0
            qkv.weight[16 * PICKY : 16 * (PICKY + 1)] *= 30
        values = blocks[0].attn.qkv
        values.weight[96 + 16 * MUTE : 96 + 16 * (MUTE + 1)], values.bias[96 + 16 * MUTE : 96 + 16 * (MUTE + 1)] = 0, 0
    return network, network.statistics(images_for(network, 32), {"attention"})


def test_a_head_that_looks_everywhere_alike_goes_first(planted: tuple[TorchNetwork, Statistics]) -> None:
    network, statistics = planted
    for layer, block in enumerate(rank("cumulative", network.weights(), statistics).blocks):
        assert block.heads.argsort().tolist() == [BLIND, 0, PICKY]
        assert block.heads[BLIND] == pytest.approx(layer + 1, rel=1e-5), "1 per layer: the least there is"


def test_scores_accumulate_over_the_layers(planted: tuple[TorchNetwork, Statistics]) -> None:
    network, statistics = planted
    ranking = rank("cumulative", network.weights(), statistics)
    own = [np.asarray(block.attention.heads) for block in statistics.blocks if block.attention is not None]
    assert len(own) == 3
    for layer, block in enumerate(ranking.blocks):
        np.testing.assert_allclose(block.heads, sum(own[: layer + 1]))
    assert not ranking.across_blocks and ranking.forward_passes == 2


def test_the_ranking_carries_the_attention_range(planted: tuple[TorchNetwork, Statistics]) -> None:
    """In a uniform head all patches tie, and the first patch wins a tie. It is far from most other patches."""
    network, statistics = planted
    ranges = rank("cumulative", network.weights(), statistics).ranges
    assert ranges is not None and ranges.shape == (3,)
    assert [float(b.attention.local) for b in statistics.blocks if b.attention] == ranges.tolist()
    assert rank("variance", network.weights(), statistics).ranges is None


def test_neurons_and_dims_are_ranked_as_by_variance(planted: tuple[TorchNetwork, Statistics]) -> None:
    network, statistics = planted
    found, other = (rank(name, network.weights(), statistics) for name in ("cumulative", "variance"))
    for mine, theirs in zip(found.blocks, other.blocks, strict=True):
        assert (mine.neurons == theirs.neurons).all() and (mine.v == theirs.v).all() and (mine.qk == theirs.qk).all()


def test_statistics_without_attention_are_refused() -> None:
    network = small_network(depth=1)
    with pytest.raises(InvalidRequest, match="kind 'attention'"):
        rank("cumulative", network.weights(), network.statistics(images_for(network, 2)))
