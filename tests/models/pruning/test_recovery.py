"""Tests of recovery. They compare it with explicit least squares, and use networks where the answer is known."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from models.pruning.recovery import refit
from models.statistics.hsic import centred, dependence, gaussian_kernels, output_kernel
from models.statistics.moments import InputStatistics, Moments
from models.structure import HeadPlan, Plan, identity
from tests.support.networks import images_for, random_plan, small_network


def statistics_of(rows: torch.Tensor) -> InputStatistics:
    moments = Moments()
    for chunk in rows.split(100):
        moments.add(chunk)
    return moments.statistics()


def test_moments_are_mean_and_covariance() -> None:
    rows = torch.randn(250, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 3
    found = statistics_of(rows)
    assert torch.allclose(found.mean, rows.mean(0))
    assert torch.allclose(found.covariance, torch.from_numpy(np.cov(rows.T.numpy(), bias=True)))


def test_refit_is_the_least_squares_answer() -> None:
    """Compare with numpy's solver on the raw rows, with a column of ones for the bias."""
    torch.manual_seed(0)
    rows = torch.randn(2000, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64) + 1
    weight, bias = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    kept = (0, 2, 3, 6)
    new, shift = refit(weight, bias, statistics_of(rows), kept)
    design = np.hstack([rows[:, kept].numpy(), np.ones((2000, 1))])
    expected, *_ = np.linalg.lstsq(design, (rows @ weight.T + bias).numpy(), rcond=None)
    assert np.allclose(new.numpy(), expected[:-1].T, atol=0.02)
    assert np.allclose(shift.numpy(), expected[-1], atol=0.02)


def test_a_constant_input_is_folded_into_the_bias() -> None:
    rows = torch.randn(500, 4, dtype=torch.float64)
    rows[:, 3] = 5.0
    weight = torch.randn(2, 4, dtype=torch.float64)
    new, shift = refit(weight, None, statistics_of(rows), (0, 1, 2))
    assert torch.allclose(new, weight[:, :3], atol=1e-3)
    assert torch.allclose(shift, weight[:, 3] * 5, atol=1e-2)


def test_a_duplicated_neuron_is_recovered_exactly() -> None:
    """The neuron's twin takes over its output weights, so the logits equal those of the original."""
    network = small_network(depth=2)
    module: Any = network.module
    fc1, fc2 = module.blocks[0].mlp.fc1, module.blocks[0].mlp.fc2
    with torch.no_grad():
        fc1.weight[1], fc1.bias[1] = fc1.weight[0], fc1.bias[0]
        fc2.weight[:, :2] *= 5
    images, whole = images_for(network, 64), identity(network.structure)
    statistics = network.statistics(images)
    first = dataclasses.replace(whole.blocks[0], neurons=tuple(i for i in range(192) if i != 1))
    plan = Plan(whole.embed, (first, *whole.blocks[1:]))
    dense = network.outputs(images)
    bare = (network.pruned(plan, None).outputs(images) - dense).abs().max()
    recovered = (network.pruned(plan, statistics).outputs(images) - dense).abs().max()
    assert recovered < 0.02 * bare


@pytest.mark.parametrize("fc_norm", [True, False])
def test_tokens_that_leave_a_pooled_network_do_not_hinder_recovery(fc_norm: bool) -> None:
    """The module that weights the pooled tokens includes the last norm, or the identity in its place."""
    network = small_network(class_token=False, global_pool="avg", fc_norm=fc_norm)
    images = images_for(network, 24)
    small = network.pruned(random_plan(network.structure, 0), network.statistics(images))
    assert small.reductions() and small.outputs(images[:2]).isfinite().all()


def test_recovery_helps_a_random_plan() -> None:
    network = small_network()
    images = images_for(network, 128)
    statistics = network.statistics(images[:96])
    plan = random_plan(network.structure, seed=4, tokens=False)
    dense = network.outputs(images[96:])
    bare = (network.pruned(plan, None).outputs(images[96:]) - dense).pow(2).mean()
    recovered = (network.pruned(plan, statistics).outputs(images[96:]) - dense).pow(2).mean()
    assert recovered < 0.7 * bare


def test_recovery_of_everything_kept_changes_nothing() -> None:
    network = small_network()
    statistics = network.statistics(images_for(network, 32))
    same = network.pruned(identity(network.structure), statistics)
    images = images_for(network, 4, seed=1)
    assert torch.allclose(same.outputs(images), network.outputs(images), atol=1e-5)


def test_heads_in_another_order_are_recovered_in_that_order() -> None:
    network = small_network(depth=1)
    images, whole = images_for(network, 64), identity(network.structure)
    statistics = network.statistics(images)
    heads = whole.blocks[0].heads
    thin = tuple(HeadPlan(h.qk, h.v[:15]) for h in heads)
    plans = [Plan(whole.embed, (dataclasses.replace(whole.blocks[0], heads=order),)) for order in (thin, thin[::-1])]
    outputs = [network.pruned(plan, statistics).outputs(images) for plan in plans]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)


def test_hsic_against_its_definition() -> None:
    """Compute trace(H Kx H H Ky H) with explicit centring matrices."""
    torch.manual_seed(0)
    features, logits = torch.randn(3, 10, 5), torch.randn(10, 4)
    kernels = gaussian_kernels(features)
    h = torch.eye(10) - torch.ones(10, 10) / 10
    y = torch.softmax(logits, -1)
    expected = [float(torch.trace(h @ k @ h @ h @ (y @ y.T) @ h)) for k in kernels]
    found = dependence(features.permute(1, 2, 0), features.permute(1, 2, 0), output_kernel(logits))
    assert np.allclose(found.neurons, expected, atol=1e-4)
    assert np.allclose(found.heads, expected, atol=1e-4)
    assert np.isclose(
        float(found.head_pairs[0, 1]), float((centred(kernels[0]) * centred(kernels[1])).sum()), atol=1e-4
    )


def test_kernels_average_the_five_widths() -> None:
    kernels = gaussian_kernels(torch.tensor([[[0.0], [2.0]]]))
    expected = np.mean([np.exp(-4 / (2 * s**2)) for s in (1, 2, 4, 8, 16)])
    assert np.isclose(float(kernels[0, 0, 1]), expected)


def test_moments_see_every_position_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are 16 tokens, and the moments use a sixteenth of the rows.

    If they used every 16th row, they would see the same position of every image.
    """
    network = small_network(depth=1, img_size=32, class_token=False, global_pool="avg")
    module: Any = network.module
    with torch.no_grad():
        module.pos_embed.mul_(50)
    images = images_for(network, 256)
    whole = network.statistics(images).blocks[0].neurons
    monkeypatch.setattr("models.statistics.collect.MOMENT_ROWS", 256)
    few = network.statistics(images).blocks[0].neurons
    deviation = whole.covariance.diagonal().sqrt() + 1e-6
    assert ((few.mean - whole.mean).abs() / deviation).mean() < 0.15


def test_a_block_of_constant_neurons_is_survived() -> None:
    network = small_network(depth=2)
    module: Any = network.module
    with torch.no_grad():
        module.blocks[0].mlp.fc1.weight.zero_()
        module.blocks[0].mlp.fc1.bias.fill_(3.0)
    images, whole = images_for(network, 32), identity(network.structure)
    statistics = network.statistics(images)
    first = dataclasses.replace(whole.blocks[0], neurons=(0, 1))
    small = network.pruned(Plan(whole.embed, (first, *whole.blocks[1:])), statistics)
    assert torch.allclose(small.outputs(images), network.outputs(images), atol=1e-3)


@pytest.mark.parametrize("pruned_rows", [False, True])
def test_gathered_inputs_are_recovered_too(pruned_rows: bool) -> None:
    """q/k/v and fc1 read fewer dims, once alone and once with fewer heads, dims and neurons at the same time."""
    network = small_network(depth=2)
    images, whole, errors = images_for(network, 96), identity(network.structure), np.zeros(2)
    statistics = network.statistics(images[:64], {"inputs"})
    without = network.statistics(images[:64])
    dense = network.outputs(images[64:])
    for seed in range(4):
        random, blocks = np.random.default_rng(seed), []
        for plan in whole.blocks:
            if pruned_rows:
                heads = tuple(HeadPlan(h.qk[1:], h.v[::-1][:14]) for h in (plan.heads[2], plan.heads[0], plan.heads[1]))
                plan = dataclasses.replace(plan, heads=heads, neurons=plan.neurons[-160:])
            qkv, fc1 = (tuple(sorted(map(int, random.choice(48, 40, replace=False)))) for _ in range(2))
            blocks.append(dataclasses.replace(plan, qkv_inputs=qkv, fc1_inputs=fc1))
        small = [network.pruned(Plan(whole.embed, tuple(blocks)), seen) for seen in (without, statistics)]
        errors += [float((one.outputs(images[64:]) - dense).pow(2).mean()) for one in small]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("layer", ["qkv", "fc1"])
def test_a_dim_that_repeats_another_is_taken_over_by_its_twin(layer: str) -> None:
    """The norm's output dim 1 is a linear function of output dim 0. So q/k/v and fc1 need no dim 1, exactly."""
    network = small_network(depth=2)
    module: Any = network.module
    block = module.blocks[0]
    norm = block.norm1 if layer == "qkv" else block.norm2
    with torch.no_grad():  # the residual stream has equal dims 0 and 1 before the norm
        module.patch_embed.proj.weight[1] = module.patch_embed.proj.weight[0]
        module.patch_embed.proj.bias[1] = module.patch_embed.proj.bias[0]
        for table in (module.cls_token, module.pos_embed):
            table[..., 1] = table[..., 0]
        block.attn.proj.weight[1], block.attn.proj.bias[1] = block.attn.proj.weight[0], block.attn.proj.bias[0]
        norm.weight[1], norm.bias[1] = -2 * norm.weight[0], norm.bias[0] + 1
    images, whole = images_for(network, 64), identity(network.structure)
    statistics = network.statistics(images, {"inputs"})
    inputs = tuple(i for i in range(48) if i != 1)
    gathered: dict[str, Any] = {"qkv_inputs": inputs} if layer == "qkv" else {"fc1_inputs": inputs}
    plan = Plan(whole.embed, (dataclasses.replace(whole.blocks[0], **gathered), whole.blocks[1]))
    dense = network.outputs(images)
    bare = (network.pruned(plan, None).outputs(images) - dense).abs().max()
    recovered = (network.pruned(plan, statistics).outputs(images) - dense).abs().max()
    assert recovered < 0.02 * bare


def test_input_moments_are_those_of_what_the_layers_read() -> None:
    network = small_network(depth=2)
    module: Any = network.module
    images, seen = images_for(network, 32), []
    found = network.statistics(images, {"inputs"}).blocks[1].inputs
    handle = module.blocks[1].mlp.fc1.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    network.outputs(images)
    handle.remove()
    assert found is not None
    rows = torch.cat(seen).reshape(-1, 48).double()
    assert torch.allclose(found.fc1.mean, rows.mean(0), atol=1e-4)
    assert torch.allclose(found.fc1.covariance, torch.cov(rows.T, correction=0), atol=1e-3)
    assert network.statistics(images).blocks[1].inputs is None
