"""Tests of first-order scores.

They compare the scores with finite differences, and random signs with the sum over many classes.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import InvalidRequest
from models.families.family import part
from models.networks.torch_network import TorchNetwork
from models.statistics.gradient_scores import fisher_scores, taylor_scores
from models.statistics.member_scores import MemberScores
from models.statistics.residual_stream import change_without, norm_without, stream_reads
from tests.support.families import SMALL as FAMILIES
from tests.support.families import small_family
from tests.support.networks import VARIANTS, images_for, small_network

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3, "mlp_ratio": 2, "img_size": 32}
COUNT, BLOCK, STEP = 6, 1, 1e-3
MEMBERS = [
    ("neurons", (5,), "mlp.fc2", slice(5, 6)),
    ("v", (1, 3), "attn.proj", slice(11, 12)),
    ("heads", (2,), "attn.proj", slice(16, 24)),
]
"""Members of a block: axis, index, the layer that reads the member, and the columns of this layer."""


pytestmark = pytest.mark.usefixtures("one_thread")


def precise(variant: str = "class token", **options: Any) -> TorchNetwork:
    network = small_network(**{**SMALL, **VARIANTS[variant], **options})
    network.module.double()
    return network


def images(network: TorchNetwork) -> Tensor:
    return images_for(network, COUNT).double()


def labels(network: TorchNetwork) -> Tensor:
    return torch.arange(COUNT) % network.structure.classes


def log_p(network: TorchNetwork) -> Tensor:
    return functional.log_softmax(network.outputs(images(network)), 1)


def taylor(network: TorchNetwork, wanted: Tensor | None) -> MemberScores:
    return taylor_scores(network.module, network._family, network.structure, images(network), labels=wanted)[0][BLOCK]


def fisher(network: TorchNetwork, seed: int = 0) -> MemberScores:
    return fisher_scores(network.module, network._family, network.structure, images(network), seed=seed)[0][BLOCK]


def slopes(network: TorchNetwork, path: str, columns: slice | int) -> Tensor:
    """Return the change of each log p, (n, C), per unit, while some columns of one layer shrink a little."""
    weight = network.blocks()[BLOCK].get_parameter(f"{path}.weight")
    before = log_p(network)
    with torch.no_grad():
        kept = weight.clone()
        weight[:, columns] *= 1 - STEP
        after = log_p(network)
        weight.copy_(kept)
    return (after - before) / STEP


@pytest.mark.parametrize("variant", ["class token", "q/k norm, layer scale", "average pooling"])
@pytest.mark.parametrize(("axis", "member", "path", "columns"), MEMBERS)
def test_taylor_is_the_slope_of_the_loss(
    variant: str, axis: str, member: tuple[int, ...], path: str, columns: slice
) -> None:
    network = precise(variant)
    changes = slopes(network, path, columns)
    expected = changes[range(COUNT), labels(network)].abs().mean()
    found = getattr(taylor(network, labels(network)), axis)[member]
    assert float(found) == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize(("axis", "member", "path", "columns"), MEMBERS)
def test_the_estimate_is_half_the_expected_square_of_the_slope(
    axis: str, member: tuple[int, ...], path: str, columns: slice
) -> None:
    network = precise()
    changes = slopes(network, path, columns)
    expected = 0.5 * (log_p(network).exp() * changes**2).sum(1).mean()
    assert float(getattr(fisher(network), axis)[member]) == pytest.approx(float(expected), rel=0.02)


def test_a_query_s_dim_is_the_slope_of_shrinking_it_in_queries_alone() -> None:
    """A q dim meets only the same k dim. Removing the dim from both equals removing it from one of them."""
    network, row = precise(), 9
    qkv: Any = network.blocks()[BLOCK].get_submodule("attn.qkv")
    before = log_p(network)
    with torch.no_grad():
        qkv.weight[row] *= 1 - STEP
        qkv.bias[row] *= 1 - STEP
    changes = (log_p(network) - before) / STEP
    expected = 0.5 * (before.exp() * changes**2).sum(1).mean()
    assert float(fisher(precise()).qk.flatten()[row]) == pytest.approx(float(expected), rel=0.02)


def test_halves_are_the_slope_of_a_branch_s_output() -> None:
    network = precise()
    for half, path in enumerate(("attn.proj", "mlp.fc2")):
        layer = network.blocks()[BLOCK].get_submodule(path)
        assert isinstance(layer, nn.Linear)
        before = log_p(network)
        with torch.no_grad():
            layer.weight.mul_(1 - STEP)
            layer.bias.mul_(1 - STEP)
            changes = (log_p(network) - before) / STEP
            layer.weight.div_(1 - STEP)
            layer.bias.div_(1 - STEP)
        expected = 0.5 * (before.exp() * changes**2).sum(1).mean()
        assert float(fisher(network).halves[half]) == pytest.approx(float(expected), rel=0.02)


def test_random_signs_expect_the_sum_over_classes() -> None:
    """With 40 classes, a few random draws per image stand for the sum over classes.

    The mean over seeds is near this sum, and the scores of a single seed are not.
    """
    network = precise(num_classes=40)
    p = log_p(network).exp()
    exact = torch.stack([0.5 * (p * slopes(network, "mlp.fc2", k) ** 2).sum(1).mean() for k in range(48)])
    drawn = torch.stack([fisher(network, seed).neurons for seed in range(12)])
    assert float((drawn.mean(0) / exact).mean()) == pytest.approx(1, rel=0.1)
    assert not drawn[0].equal(drawn[1]) and fisher(network, 1).neurons.equal(drawn[1])


def test_without_labels_the_dense_answers_stand_in() -> None:
    network = precise()
    answers = network.outputs(images(network)).argmax(1)
    unlabelled = taylor(network, None).neurons
    assert taylor(network, answers).neurons.equal(unlabelled)
    assert not taylor(network, (answers + 1) % 7).neurons.allclose(unlabelled)


@pytest.mark.parametrize("own", [True, False])
def test_a_norm_without_a_dim_is_exact(own: bool) -> None:
    """Check this also for a dim that is much larger than the others, as the residual stream has such dims."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(6).double()
    with torch.no_grad():
        norm.weight.add_(torch.randn(6))
        norm.bias.add_(torch.randn(6))
    x, gradient = torch.randn(2, 3, 6).double(), torch.randn(2, 3, 6).double()
    x[..., 4] = 50
    found = change_without(norm, x, gradient, own)
    for dim in range(6):
        keep = torch.ones(6).double()
        keep[dim] = 0
        less = norm_without(norm, x, keep) - norm(x)
        if not own:
            less[..., dim] = 0
        torch.testing.assert_close(found[:, dim], (less * gradient).sum((1, 2)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_out_of_the_stream_is_known(variant: str) -> None:
    """If every read of a dim gives zeros, the dim may hold any value."""
    network = precise(variant)
    keep = torch.ones(24).double()
    keep[7] = 0
    for read in stream_reads(network.module, network._family):
        read.module.register_forward_hook(lambda norm, inputs, _out: norm_without(norm, inputs[0], keep))
    before = network.outputs(images(network))
    with torch.no_grad():
        network.blocks()[0].get_parameter("mlp.fc2.bias")[7] += 100
    torch.testing.assert_close(network.outputs(images(network)), before)


def test_features_have_no_divergence() -> None:
    network = precise(num_classes=0)
    takes: tuple[Callable[[], MemberScores], ...] = (lambda: taylor(network, None), lambda: fisher(network))
    for take in takes:
        with pytest.raises(InvalidRequest, match="no classifier"):
            take()


@pytest.mark.parametrize("variant", FAMILIES)
def test_families_with_stages_are_read_in_their_own_layers(variant: str) -> None:
    """Compute how the loss of one image changes while a member's weights shrink.

    The expected value comes from the gradient of these weights themselves.
    """
    network = small_family(variant)
    image, label, family = images_for(network, 1), torch.tensor([2]), network.family
    blocks, stream = taylor_scores(network.module, family, network.structure, image, labels=label)
    assert stream.embed.shape == (0,)
    functional.cross_entropy(network.module(image), label).backward()

    def same(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found.float().ravel(), expected.abs().ravel(), rtol=1e-3, atol=1e-5)

    for block, scores in zip(network.blocks(), blocks, strict=True):
        same(scores.neurons, by_input(part(block, family.fc2)))
        values = by_input(part(block, family.projection)).reshape(scores.v.shape)
        same(scores.v, values)
        same(scores.heads, values.sum(1))
        parts: dict[str, Tensor] = {}
        for path, made in family.attention_layers.items():
            parts |= dict(zip(made, by_output(part(block, path)).chunk(len(made)), strict=True))
        same(scores.qk, 0.5 * (parts["q"] + parts["k"]))


def by_input(layer: nn.Module) -> Tensor:
    """Return minus the sum of weight times gradient, for each input."""
    assert isinstance(layer, nn.Linear) and layer.weight.grad is not None
    return -(layer.weight * layer.weight.grad).sum(0).detach()


def by_output(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear) and layer.weight.grad is not None
    found = -(layer.weight * layer.weight.grad).sum(1)
    if layer.bias is not None and layer.bias.grad is not None:
        found = found - layer.bias * layer.bias.grad
    return found.detach()
