"""Tests of learned gates.

Gates of useless inputs close, and gates of used inputs stay open. Folded gates change no output. An interrupted
training resumes.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.data.dataset import Batch
from models.errors import InvalidRequest
from models.networks.torch_network import TorchNetwork
from models.statistics.gates import GatedLinear, Gates, attach, fold
from models.statistics.statistics import Statistics, from_tensors, to_tensors
from models.structure import identity
from models.training.train_gates import GateRecipe, train_gates
from tests.support.networks import images_for, small_network

RECIPE = GateRecipe(epochs=4, l1=1e-3, learning_rate=1e-5, gate_learning_rate=0.03, batch=8, seed=3)
PLANTED = {"qkv_inputs": 5, "proj_inputs": 7, "fc1_inputs": 9, "neurons": 11}
"""In each layer of the first block, one input whose column is zero."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network() -> TorchNetwork:
    """A network in which no layer reads the planted inputs."""
    network = small_network(depth=2, img_size=32)
    block: Any = network.blocks()[0]
    layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    with torch.no_grad():
        for layer, member in zip(layers, PLANTED.values(), strict=True):
            layer.weight[:, member] = 0
    return network


@pytest.fixture(scope="module")
def data(network: TorchNetwork) -> Batch:
    images = images_for(network, 64)
    return Batch(images, network.outputs(images).argmax(1), torch.arange(64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def trained(network: TorchNetwork, data: Batch, folder: Path) -> TorchNetwork:
    return train_gates(network, data, RECIPE, folder / "trained.pt", after_epoch=ignore)


def ignore(_epoch: int, _loss: float) -> None:
    pass


def gates_of(network: TorchNetwork) -> tuple[Gates, ...]:
    assert network.gates is not None
    return network.gates


def every_gate(network: TorchNetwork) -> Tensor:
    return torch.cat([getattr(block, name) for block in gates_of(network) for name in PLANTED])


def weights(network: TorchNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.module.state_dict().items()}


@pytest.mark.parametrize("labelled", [True, False])
def test_the_gate_of_what_nothing_reads_closes_first(
    network: TorchNetwork, data: Batch, tmp_path: Path, labelled: bool
) -> None:
    data = data if labelled else dataclasses.replace(data, labels=None)
    found = gates_of(train_gates(network, data, RECIPE, tmp_path / "c.pt", after_epoch=ignore))[0]
    for name, member in PLANTED.items():
        gate = getattr(found, name).abs()
        assert (gate < gate[member]).float().mean() < 0.1, name
        assert gate[member] < 0.8 and gate.max() > gate[member] + 0.1, name


def test_without_the_penalty_it_stays_open(network: TorchNetwork, data: Batch, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, l1=0.0, learning_rate=0.0)
    opened = gates_of(train_gates(network, data, recipe, tmp_path / "c.pt", after_epoch=ignore))[0]
    assert [float(getattr(opened, name)[member]) for name, member in PLANTED.items()] == [1, 1, 1, 1]


def test_a_larger_penalty_leaves_less(
    network: TorchNetwork, data: Batch, trained: TorchNetwork, tmp_path: Path
) -> None:
    more = train_gates(network, data, dataclasses.replace(RECIPE, l1=0.1), tmp_path / "c.pt", after_epoch=ignore)
    assert every_gate(more).abs().sum() < 0.95 * every_gate(trained).abs().sum()


@pytest.mark.parametrize("labelled", [True, False])
def test_the_loss_is_the_task_and_the_sizes_of_all_gates(
    network: TorchNetwork, data: Batch, tmp_path: Path, labelled: bool
) -> None:
    """At learning rate 0 no weight changes.

    The loss is the cross-entropy plus lambda for each open gate. Without labels, the KL divergence of the network to
    itself takes the place of the cross-entropy, and it is 0.
    """
    data = data if labelled else dataclasses.replace(data, labels=None)
    losses: list[float] = []
    still = dataclasses.replace(RECIPE, epochs=1, learning_rate=0.0, gate_learning_rate=0.0)
    train_gates(network, data, still, tmp_path / "c.pt", after_epoch=lambda _, loss: losses.append(loss))
    task = float(functional.cross_entropy(network.outputs(data.images), data.labels)) if data.labels is not None else 0
    assert losses == [pytest.approx(task + 1e-3 * 2 * (48 + 48 + 48 + 192), rel=1e-4)]


def test_folded_gates_give_the_same_answers(network: TorchNetwork) -> None:
    other = small_network(depth=2, img_size=32, seed=1, qk_norm=True, qkv_bias=False)
    images = images_for(other, 4)
    torch.manual_seed(0)
    gates = attach(other.blocks(), other.family)
    with torch.no_grad():
        for gate in gates:
            gate.copy_(torch.randn_like(gate))
    gated = other.outputs(images)
    values = fold(other.blocks(), other.family)
    torch.testing.assert_close(other.outputs(images), gated, rtol=1e-4, atol=1e-4)
    assert torch.equal(values[1].fc1_inputs, gates[6]) and torch.equal(values[1].neurons, gates[7])
    assert not any(isinstance(module, GatedLinear) for module in other.module.modules())


def test_the_original_stays_as_it_was_and_the_trained_network_has_its_shape(
    network: TorchNetwork, trained: TorchNetwork
) -> None:
    before = small_network(depth=2, img_size=32)
    fc1, fc1_before = (one.blocks()[1].get_parameter("mlp.fc1.weight") for one in (network, before))
    assert network.gates is None and fc1.equal(fc1_before)
    assert weights(trained).keys() == weights(network).keys()
    assert trained.structure == network.structure and not trained.module.training


def test_the_gates_are_in_the_trained_weights(network: TorchNetwork, trained: TorchNetwork) -> None:
    """The weights learn with a very small rate. Therefore they are almost the original weights times the gates."""
    gates = gates_of(trained)[1]
    fc2, fc2_trained = (one.blocks()[1].get_parameter("mlp.fc2.weight") for one in (network, trained))
    expected = fc2 * gates.neurons
    torch.testing.assert_close(fc2_trained, expected, rtol=0.02, atol=2e-3)


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_gates(
    network: TorchNetwork, data: Batch, trained: TorchNetwork, tmp_path: Path
) -> None:
    def stop(epoch: int, _loss: float) -> None:
        if epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_gates(network, data, RECIPE, tmp_path / "c.pt", after_epoch=stop)
    torch.manual_seed(99)  # another process
    rest: list[int] = []
    resumed = train_gates(network, data, RECIPE, tmp_path / "c.pt", after_epoch=lambda epoch, _: rest.append(epoch))
    assert rest == [3, 4]
    torch.testing.assert_close(every_gate(resumed), every_gate(trained), rtol=0, atol=1e-6)
    again = train_gates(network, data, RECIPE, tmp_path / "c.pt", after_epoch=lambda epoch, _: rest.append(epoch))
    assert rest == [3, 4] and every_gate(again).equal(every_gate(resumed))


def test_gates_are_statistics_of_the_trained_network_alone(
    network: TorchNetwork, trained: TorchNetwork, data: Batch
) -> None:
    found = trained.statistics(data.images, {"gates"})
    assert found.blocks[1].gates == gates_of(trained)[1] and trained.statistics(data.images).blocks[1].gates is None
    stored = from_tensors(Statistics, to_tensors(found)).blocks[0].gates
    assert stored is not None and stored.fc1_inputs.equal(gates_of(trained)[0].fc1_inputs)
    with pytest.raises(InvalidRequest, match="no learned gates"):
        network.statistics(data.images, {"gates"})


def test_a_network_cut_from_the_trained_one_has_no_gates(trained: TorchNetwork) -> None:
    assert trained.pruned(identity(trained.structure), None).gates is None
