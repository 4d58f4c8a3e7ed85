"""Planted structure: a dead head, a duplicated neuron and a constant neuron rank where each criterion's definition says."""

import numpy as np
import pytest
import torch

from models.errors import InvalidRequest, UnknownName
from models.statistics import Statistics
from models.torch_network import TorchNetwork
from search.criteria import CRITERIA, rank
from search.criteria.hsic import head_scores, minmax, neuron_scores
from search.ranking import Ranking
from tests.models.networks import images_for, small_network

DEAD_HEAD, DUPLICATE, TWIN, CONSTANT = 1, 5, 6, 9


@pytest.fixture(scope="module")
def planted() -> tuple[TorchNetwork, Statistics]:
    """In block 1: head 1 gives zeros, neurons 5 and 6 are the same and strong, neuron 9 is a large constant."""
    network = small_network(depth=2, seed=3)
    block = network.module.blocks[1]
    with torch.no_grad():
        rows = slice(2 * 48 + 16 * DEAD_HEAD, 2 * 48 + 16 * (DEAD_HEAD + 1))
        block.attn.qkv.weight[rows], block.attn.qkv.bias[rows] = 0, 0
        block.attn.proj.weight[:, 16 * DEAD_HEAD : 16 * (DEAD_HEAD + 1)] *= 0.1
        block.mlp.fc1.weight[[DUPLICATE, TWIN]] = 6 * block.mlp.fc1.weight[DUPLICATE].clone()
        block.mlp.fc1.bias[[DUPLICATE, TWIN]] = block.mlp.fc1.bias[DUPLICATE].clone()
        block.mlp.fc1.weight[CONSTANT], block.mlp.fc1.bias[CONSTANT] = 0, 30.0
        block.mlp.fc2.weight[:, [DUPLICATE, TWIN]] = block.mlp.fc2.weight[:, [DUPLICATE]].clone()
    return network, network.statistics(images_for(network, 64), {"dependence"})


def ranked(planted: tuple[TorchNetwork, Statistics], criterion: str) -> Ranking:
    network, statistics = planted
    return rank(criterion, network.weights(), statistics)


def place(scores: np.ndarray, member: int) -> float:
    """0: removed first, 1: kept longest."""
    return float((scores < scores[member]).mean())


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "gates"])  # trained: test_gates_criterion
def test_the_dead_head_goes_first(planted: tuple[TorchNetwork, Statistics], criterion: str) -> None:
    """Its output is zero: no variance, no dependence, nothing to reconstruct, and its weights are the smallest."""
    assert ranked(planted, criterion).blocks[1].heads.argmin() == DEAD_HEAD


@pytest.mark.parametrize("criterion", ["variance", "reconstruction"])
def test_the_constant_neuron_goes_first_where_means_are_folded(
    planted: tuple[TorchNetwork, Statistics], criterion: str
) -> None:
    assert ranked(planted, criterion).blocks[1].neurons.argmin() == CONSTANT


@pytest.mark.parametrize("criterion", ["hsic"])
def test_the_constant_neuron_stays_where_activation_size_counts(
    planted: tuple[TorchNetwork, Statistics], criterion: str
) -> None:
    """MDC's score is nine tenths sum |activation|: a large constant looks important to it."""
    assert place(ranked(planted, criterion).blocks[1].neurons, CONSTANT) > 0.9


def test_only_reconstruction_sees_the_duplicate(planted: tuple[TorchNetwork, Statistics]) -> None:
    """One of the pair is free, its twin then carries both; every other criterion gives both the same high place."""
    neurons = ranked(planted, "reconstruction").blocks[1].neurons
    pair = sorted(place(neurons, member) for member in (DUPLICATE, TWIN))
    assert pair[0] < 0.1 and pair[1] > 0.9
    for criterion in ("variance", "hsic", "magnitude"):
        neurons = ranked(planted, criterion).blocks[1].neurons
        assert neurons[DUPLICATE] == pytest.approx(neurons[TWIN], rel=1e-4)
        assert place(neurons, DUPLICATE) > 0.5


def test_reconstruction_loss_is_what_refitting_leaves(
    planted: tuple[TorchNetwork, Statistics],
) -> None:
    """The first neuron that goes costs what least squares on the raw activations says."""
    network, statistics = planted
    weights, seen = network.weights()[0], statistics.blocks[0].neurons
    scores = ranked(planted, "reconstruction").blocks[0].neurons
    first = int(scores.argmin())
    covariance, fc2 = np.asarray(seen.covariance), np.asarray(weights.fc2.weight.detach().double())
    kept = [i for i in range(192) if i != first]
    best = np.linalg.lstsq(covariance[np.ix_(kept, kept)], covariance[kept][:, first], rcond=1e-6)[0]
    left = covariance[first, first] - covariance[first, kept] @ best
    assert scores[first] == pytest.approx(left * (fc2[:, first] ** 2).sum(), rel=0.2, abs=1e-5)


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
