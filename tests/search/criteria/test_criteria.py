"""Tests of the criteria on planted structure.

A dead head, a duplicated neuron and a constant neuron get the rank that the definition of each criterion demands.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import InvalidRequest, UnknownName
from models.networks.torch_network import TorchNetwork
from models.statistics.statistics import BlockStatistics, Statistics
from search.criteria import CRITERIA, rank
from search.criteria.hsic import head_scores, minmax, neuron_scores
from search.methods import CRITERION_TITLES, METHODS
from search.ranking import Ranking
from tests.support.networks import images_for, small_network

DEAD_HEAD, DUPLICATE, TWIN, CONSTANT = 1, 5, 6, 9
DEAD_DIM = 20
ANSWERS = ("taylor", "kl", "kl-exact")
"""The criteria that measure what the outputs lose."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def planted() -> tuple[TorchNetwork, Statistics]:
    """Plant structure in block 1.

    Head 1 gives zeros. Neurons 5 and 6 are equal and strong. Neuron 9 is a large constant.
    """
    network = small_network(depth=2, seed=3)
    block: Any = network.blocks()[1]
    with torch.no_grad():
        rows = slice(2 * 48 + 16 * DEAD_HEAD, 2 * 48 + 16 * (DEAD_HEAD + 1))
        block.attn.qkv.weight[rows], block.attn.qkv.bias[rows] = 0, 0
        block.attn.proj.weight[:, 16 * DEAD_HEAD : 16 * (DEAD_HEAD + 1)] *= 0.1
        block.mlp.fc1.weight[[DUPLICATE, TWIN]] = 6 * block.mlp.fc1.weight[DUPLICATE].clone()
        block.mlp.fc1.bias[[DUPLICATE, TWIN]] = block.mlp.fc1.bias[DUPLICATE].clone()
        block.mlp.fc1.weight[CONSTANT], block.mlp.fc1.bias[CONSTANT] = 0, 30.0
        block.mlp.fc2.weight[:, [DUPLICATE, TWIN]] = block.mlp.fc2.weight[:, [DUPLICATE]].clone()
    kinds = frozenset().union(*(criterion.needs for criterion in CRITERIA.values()))
    statistics = network.statistics(images_for(network, 64), kinds - {"deletion", "gates", "inputs"})
    # Leave-one-out scores need one pass per member, so the test uses few images.
    deletion = network.statistics(images_for(network, 2), {"deletion"})
    pairs = zip(statistics.blocks, deletion.blocks, strict=True)
    blocks = tuple(dataclasses.replace(block, deletion=deleted.deletion) for block, deleted in pairs)
    return network, dataclasses.replace(statistics, blocks=blocks, deletion=deletion.deletion)


def ranked(planted: tuple[TorchNetwork, Statistics], criterion: str) -> Ranking:
    network, statistics = planted
    return rank(criterion, network.weights(), statistics)


def place(scores: np.ndarray, member: int) -> float:
    """Return the rank of a member, as a share: 0 is removed first, 1 stays longest."""
    return float((scores < scores[member]).mean())


BY_VALUES = [name for name in CRITERIA if name not in ("cumulative", "gates")]
"""The criteria that see the output of a head.

Cumulative attention sees only where a head looks (tests/search/criteria/test_cumulative.py). Gates are trained
(tests/search/criteria/test_gates.py).
"""


@pytest.mark.parametrize("criterion", BY_VALUES)
def test_the_dead_head_goes_first(planted: tuple[TorchNetwork, Statistics], criterion: str) -> None:
    """The head's output is zero and its weights are the smallest.

    It has no variance and no dependence, and recovery loses nothing.
    """
    assert ranked(planted, criterion).blocks[1].heads.argmin() == DEAD_HEAD


@pytest.mark.parametrize("criterion", ["variance", "reconstruction", "cumulative"])
def test_the_constant_neuron_goes_first_where_means_are_folded(
    planted: tuple[TorchNetwork, Statistics], criterion: str
) -> None:
    assert ranked(planted, criterion).blocks[1].neurons.argmin() == CONSTANT


@pytest.mark.parametrize("criterion", ["hsic", *ANSWERS])
def test_the_constant_neuron_stays_where_activation_size_counts(
    planted: tuple[TorchNetwork, Statistics], criterion: str
) -> None:
    """Nine tenths of MDC's score are sum |activation|, so a large constant looks important.

    Its removal costs its mean. Only recovery can move the mean into the bias.
    """
    assert place(ranked(planted, criterion).blocks[1].neurons, CONSTANT) > 0.9


def test_only_reconstruction_sees_the_duplicate(planted: tuple[TorchNetwork, Statistics]) -> None:
    """Check that one neuron of the pair costs nothing, because its twin then carries both.

    Every other criterion gives both neurons the same high score.
    """
    neurons = ranked(planted, "reconstruction").blocks[1].neurons
    pair = sorted(place(neurons, member) for member in (DUPLICATE, TWIN))
    assert pair[0] < 0.1 and pair[1] > 0.9
    for criterion in ("variance", "hsic", "magnitude", "cumulative"):
        neurons = ranked(planted, criterion).blocks[1].neurons
        assert neurons[DUPLICATE] == pytest.approx(neurons[TWIN], rel=1e-4)
        assert place(neurons, DUPLICATE) > 0.5


@pytest.mark.parametrize("criterion", ANSWERS)
def test_one_deletion_at_a_time_does_not_see_the_duplicate(
    planted: tuple[TorchNetwork, Statistics], criterion: str
) -> None:
    neurons = ranked(planted, criterion).blocks[1].neurons
    assert neurons[DUPLICATE] == pytest.approx(neurons[TWIN], rel=1e-2)


def test_reconstruction_loss_is_what_refitting_leaves(
    planted: tuple[TorchNetwork, Statistics],
) -> None:
    """The first neuron to be removed costs as much as least squares on the raw activations says."""
    network, statistics = planted
    weights, seen = network.weights()[0], statistics.blocks[0].neurons
    scores = ranked(planted, "reconstruction").blocks[0].neurons
    first = int(scores.argmin())
    covariance, fc2 = np.asarray(seen.covariance), np.asarray(weights.fc2.weight.detach().double())
    kept = [i for i in range(192) if i != first]
    best = np.linalg.lstsq(covariance[np.ix_(kept, kept)], covariance[kept][:, first], rcond=1e-6)[0]
    left = covariance[first, first] - covariance[first, kept] @ best
    assert scores[first] == pytest.approx(left * (fc2[:, first] ** 2).sum(), rel=0.2, abs=1e-5)


@pytest.fixture(scope="module")
def severed() -> tuple[TorchNetwork, Statistics]:
    """Plant parts that the outputs do not need.

    The MLP of block 0 gives almost nothing. No layer writes or reads embedding dim 20. In block 1, dim 3 of q, k and v
    of head 2 is nearly zero.
    """
    network = small_network(depth=2, seed=4, img_size=32, mlp_ratio=2)
    module: Any = network.module
    with torch.no_grad():
        for block in module.blocks:
            for norm in (block.norm1, block.norm2):
                norm.weight[DEAD_DIM], norm.bias[DEAD_DIM] = 0, 0
            for write in (block.attn.proj, block.mlp.fc2):
                write.weight[DEAD_DIM], write.bias[DEAD_DIM] = 0, 0
        module.norm.weight[DEAD_DIM], module.norm.bias[DEAD_DIM] = 0, 0
        for table in (module.cls_token, module.pos_embed):
            table[..., DEAD_DIM] = 0
        module.patch_embed.proj.weight[DEAD_DIM], module.patch_embed.proj.bias[DEAD_DIM] = 0, 0
        module.blocks[0].mlp.fc2.weight.mul_(1e-3)
        module.blocks[0].mlp.fc2.bias.mul_(1e-3)
        for side in range(3):
            module.blocks[1].attn.qkv.weight[48 * side + 35] *= 1e-3
            module.blocks[1].attn.qkv.bias[48 * side + 35] *= 1e-3
    return network, network.statistics(images_for(network, 4), {"taylor", "fisher", "deletion"})


@pytest.mark.parametrize("criterion", ANSWERS)
def test_what_the_answers_do_not_need_goes_first(severed: tuple[TorchNetwork, Statistics], criterion: str) -> None:
    """Check a sublayer, an attention dim, and an embedding dim that only receives zeros and that no layer reads."""
    ranking = ranked(severed, criterion)
    halves = np.stack([block.halves for block in ranking.blocks if block.halves is not None])
    assert halves.argmin() == np.ravel_multi_index((0, 1), halves.shape)
    assert ranking.embed is not None and ranking.embed.argmin() == DEAD_DIM
    dims = ranking.blocks[1].dims
    assert dims is not None and dims.argmin() == np.ravel_multi_index((2, 3), dims.shape)
    assert ranking.across_blocks


def test_a_ranking_says_what_it_cost(severed: tuple[TorchNetwork, Statistics]) -> None:
    """Check the number of passes over the images, backward passes included.

    Moments and one loss need 3 passes. One criterion needs a pass per class, another one a pass per member.
    """
    taylor, kl, exact = (ranked(severed, criterion) for criterion in ANSWERS)
    assert (taylor.forward_passes, kl.forward_passes) == (3, 2 + 7)
    members = 2 * (96 + 48 + 3 + 2)
    assert members / 2 < exact.forward_passes < members + 48 + 3
    assert min(taylor.seconds, kl.seconds, exact.seconds) > 0


def test_statistics_without_the_kind_are_refused(severed: tuple[TorchNetwork, Statistics]) -> None:
    network, plain = severed[0], Statistics(tuple(BlockStatistics(b.projection, b.neurons) for b in severed[1].blocks))
    with pytest.raises(InvalidRequest, match="fisher"):
        rank("kl", network.weights(), plain)


def test_hsic_scores_against_the_paper_by_hand() -> None:
    heads, pairs = np.array([3.0, 1.0]), np.array([[9.0, 2.0], [2.0, 5.0]])
    assert head_scores(heads, pairs).tolist() == pytest.approx([3 - 0.2, 1 - 0.2])
    assert minmax(np.array([2.0, 4.0, 3.0])).tolist() == [0, 1, 0.5]
    assert neuron_scores(np.array([0.0, 1.0]), np.array([10.0, 0.0])).tolist() == pytest.approx([0.9, 0.1])


def test_a_criterion_without_images_is_refused() -> None:
    network = small_network()
    with pytest.raises(InvalidRequest, match="needs calibration images"):
        rank("variance", network.weights(), None)
    assert rank("magnitude", network.weights(), None).forward_passes == 0


def test_an_unknown_criterion_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="reconstruction"):
        rank("hessian", small_network().weights(), None)


def test_every_criterion_has_a_title_and_a_method_that_supports_it() -> None:
    supported = {name for method in METHODS.values() for name in method.criteria}
    assert CRITERIA.keys() == CRITERION_TITLES.keys() == supported
