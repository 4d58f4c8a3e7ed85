"""Tests of healing: the internal states and the outputs come nearer to those of the dense network, without labels."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from models.data.preprocessing import Preprocessing
from models.evaluation.metrics import agreement, feature_agreement
from models.graph.network import GraphNetwork
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork
from models.training.heal import EPOCH_STEPS, Healing, Streams, heal, output_distance
from tests.support.networks import images_for, random_plan, small_network
from tests.support.plans import plan_of

pytestmark = pytest.mark.usefixtures("one_thread")

HEALING = Healing(2 * EPOCH_STEPS, 3e-3, 8, seed=1)


@pytest.fixture(scope="module")
def dense() -> TorchNetwork:
    return small_network(depth=3, img_size=32)


@pytest.fixture(scope="module")
def pruned(dense: TorchNetwork) -> Network:
    """A network that is pruned on every axis; two of its blocks remove tokens."""
    return dense.pruned(random_plan(dense.structure, seed=2, embed=True), None)


def healed(
    network: Network, dense: Network, folder: Path, stop: int | None = None, healing: Healing = HEALING
) -> Network:
    def after(epoch: int, _loss: float) -> None:
        if epoch == stop:
            raise InterruptedError

    return heal(network, dense, images_for(dense, 48), healing, checkpoint=folder / "heal.pt", after_epoch=after)


def weights(network: Network) -> dict[str, Tensor]:
    return network.module.state_dict()


def test_healing_brings_unseen_images_nearer_to_the_original(
    dense: TorchNetwork, pruned: Network, tmp_path: Path
) -> None:
    before, unseen = {name: value.clone() for name, value in weights(pruned).items()}, images_for(dense, 32, seed=9)
    found = healed(pruned, dense, tmp_path)
    wanted = dense.outputs(unseen)
    assert agreement(wanted, found.outputs(unseen)) > 0.5 * agreement(wanted, pruned.outputs(unseen))
    assert all(torch.equal(before[name], value) for name, value in weights(pruned).items())


def test_an_interrupted_healing_goes_on_to_the_same_weights(
    dense: TorchNetwork, pruned: Network, tmp_path: Path
) -> None:
    whole = healed(pruned, dense, tmp_path)
    (tmp_path / "again").mkdir()
    with pytest.raises(InterruptedError):
        healed(pruned, dense, tmp_path / "again", stop=1)
    again = healed(pruned, dense, tmp_path / "again")
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(again).items())


def test_tokens_are_compared_with_themselves(dense: TorchNetwork) -> None:
    """A network that only drops tokens has the dense stream of the remaining tokens in front of the first drop."""
    plan = random_plan(dense.structure, seed=2, dims=False)
    images = images_for(dense, 4)
    whole = dense.pruned(plan_of(dense.structure, 1.0), None).module
    with torch.no_grad(), Streams(whole) as target, Streams(dense.pruned(plan, None).module) as _:
        whole(images)
    stream = target.after[1]
    chosen = torch.tensor([[3, 0, 5]] * 4)
    part = type(stream)(torch.cat([stream.x[:, :1], stream.x[:, [4, 1, 6]]], 1), chosen, stream.prefix)
    columns = torch.arange(stream.x.shape[-1])
    assert float(part.distance(stream, columns)) == 0
    other = type(stream)(part.x, chosen.flip(1), stream.prefix)
    assert float(other.distance(stream, columns)) > 0.1


def test_a_network_that_goes_by_its_graph_is_healed_by_its_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = timm.create_model(
        "eva02_tiny_patch14_224", pretrained=False, img_size=28, depth=2, embed_dim=48, num_heads=3, num_classes=0
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # the removed members of a new network hardly matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    dense = GraphNetwork(module, "eva", Preprocessing.of_model(module), 0)
    pruned = dense.pruned(plan_of(dense.structure, 0.5), None)
    found = healed(pruned, dense, tmp_path, healing=Healing(50, 3e-4, 8, seed=1))
    unseen = images_for(dense, 16, seed=9)
    wanted = dense.outputs(unseen)
    assert feature_agreement(wanted, found.outputs(unseen)) > feature_agreement(wanted, pruned.outputs(unseen))


def test_the_distance_of_outputs_is_zero_for_equal_ones_only() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for classes in (0, 4):
        assert float(output_distance(logits, logits.clone(), classes)) == pytest.approx(0, abs=1e-6)
        assert float(output_distance(logits.flip(1), logits, classes)) > 0.1
    assert float(output_distance(logits + 3, logits, 4)) == pytest.approx(0, abs=1e-6)  # the same classes
    assert float(output_distance(2 * logits, logits, 0)) == pytest.approx(1)
