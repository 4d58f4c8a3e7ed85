"""Tests of the criterion of learned gates.

The score of a member is |gate|, and the score of a head is the sum over its gates.
"""

import copy

import numpy as np
import pytest
import torch

from models.data.dataset import Batch
from models.errors import InvalidRequest
from models.networks.torch_network import TorchNetwork
from models.training.train_gates import GateRecipe, train_gates
from search.criteria import CRITERIA, rank
from search.policy import Policy
from search.spaces.gates import GateSpace
from tests.support.networks import images_for, small_network

DEAD_HEAD = 1
RECIPE = GateRecipe(epochs=4, l1=1e-3, learning_rate=1e-5, gate_learning_rate=0.03, batch=8, seed=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TorchNetwork:
    """Train the gates of a network whose projection reads nothing from one head of block 0."""
    network = small_network(depth=2, img_size=32)
    with torch.no_grad():
        network.blocks()[0].get_parameter("attn.proj.weight")[:, 16 * DEAD_HEAD : 16 * (DEAD_HEAD + 1)] = 0
    images = images_for(network, 64)
    data = Batch(images, network.outputs(images).argmax(1), torch.arange(64))
    return train_gates(network, data, RECIPE, tmp_path_factory.mktemp("gates") / "c.pt", after_epoch=lambda *_: None)


def test_the_head_that_nothing_reads_goes_first(trained: TorchNetwork) -> None:
    images = images_for(trained, 32)
    ranking = rank("gates", trained.weights(), trained.statistics(images, CRITERIA["gates"].needs))
    assert ranking.blocks[0].heads.argmin() == DEAD_HEAD
    assert ranking.across_blocks and ranking.forward_passes == 2


def test_scores_are_the_sizes_of_the_gates(trained: TorchNetwork) -> None:
    """Check the scores, also for gates that training has pushed below zero."""
    statistics = copy.deepcopy(trained.statistics(images_for(trained, 32), {"gates"}))
    gates = statistics.blocks[1].gates
    assert gates is not None
    gates.neurons[3] = -5.0
    block = rank("gates", trained.weights(), statistics).blocks[1]
    assert block.inputs is not None
    for scores, gate in zip(block.inputs, (gates.qkv_inputs, gates.proj_inputs, gates.fc1_inputs), strict=True):
        np.testing.assert_allclose(scores, gate.abs().numpy(), rtol=1e-6)
    assert block.neurons.argmax() == 3 and block.neurons[3] == 5
    np.testing.assert_allclose(block.heads, gates.proj_inputs.abs().reshape(3, 16).sum(1).numpy(), rtol=1e-5)


def test_without_trained_gates_it_is_refused(trained: TorchNetwork) -> None:
    with pytest.raises(InvalidRequest, match="trained gates"):
        rank("gates", trained.weights(), trained.statistics(images_for(trained, 16)))


def test_what_small_gates_let_through_is_needed_less_than_what_large_ones_do(trained: TorchNetwork) -> None:
    """Remove a fifth of the gates, once by the ranking and once by the reversed ranking."""
    images = images_for(trained, 32, seed=5)
    ranking = rank("gates", trained.weights(), trained.statistics(images, {"gates"}))
    dense, losses = trained.outputs(images), []
    for sign in (1, -1):
        for block in ranking.blocks:
            assert block.inputs is not None
            for scores in (*block.inputs, block.neurons):
                scores *= sign
        plan = GateSpace(trained.structure, ranking).plan(Policy(inputs=0.8))
        losses.append(float((trained.pruned(plan, None).outputs(images) - dense).pow(2).mean()))
    assert losses[0] < 0.5 * losses[1]
