"""Tests that compare slicing with masking.

The physically smaller network gives the same outputs as the original in which the same parts are silent.

The tests compare in float64, to 1e-9. On both sides, norms are taken over the kept dims. This file builds the masked
side from the modules of the original. It uses nothing from `models.pruning.prune`.
"""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.errors import InvalidRequest
from models.loading.load_model import untrained
from models.networks.torch_network import TorchNetwork
from models.structure import BlockPlan, HeadPlan, Plan, TokenPlan, identity
from tests.support.networks import VARIANTS, images_for, random_plan, small_network

TOLERANCE = 1e-9


class MaskedNorm(nn.Module):
    """LayerNorm with the mean and variance of the kept dims. Its outputs in the other dims are zero."""

    def __init__(self, norm: nn.LayerNorm, keep: Tensor) -> None:
        super().__init__()
        self.norm, self.keep = norm, keep

    def forward(self, x: Tensor) -> Tensor:
        kept = x[..., self.keep]
        mean, variance = kept.mean(-1, keepdim=True), kept.var(-1, keepdim=True, unbiased=False)
        out = (x - mean) / torch.sqrt(variance + self.norm.eps) * self.norm.weight
        mask = torch.zeros_like(out)
        mask[..., self.keep] = 1
        return (out + (0 if self.norm.bias is None else self.norm.bias)) * mask


def masked_outputs(network: TorchNetwork, plan: Plan, images: Tensor) -> Tensor:
    """Return the logits of the original in which all parts that the plan removes are silent, except tokens."""
    model: Any = copy.deepcopy(network.module).double()
    embed = torch.tensor(plan.embed)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm) and "q_norm" not in path and "k_norm" not in path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, MaskedNorm(module, embed))
    with torch.no_grad():
        for wanted in plan.blocks:
            _silence(model.blocks[wanted.source], wanted)
        found: Tensor = model(images.double())
    return found


def _silence(block: Any, plan: BlockPlan) -> None:
    width = block.attn.qkv.out_features // 3
    qk = torch.tensor([i for head in plan.heads for i in head.qk])
    v = torch.tensor([i for head in plan.heads for i in head.v])
    keep_qk, keep_v = torch.zeros(width, dtype=torch.bool), torch.zeros(width, dtype=torch.bool)
    keep_qk[qk], keep_v[v] = True, True
    rows = torch.cat([keep_qk, torch.ones(width, dtype=torch.bool), torch.ones(width, dtype=torch.bool)])
    block.attn.qkv.weight[~rows] = 0  # a silent q dim adds nothing to any logit
    if block.attn.qkv.bias is not None:
        block.attn.qkv.bias[~rows] = 0
    block.attn.proj.weight[:, ~keep_v] = 0
    silent = torch.ones(block.mlp.fc2.in_features, dtype=torch.bool)
    silent[torch.tensor(plan.neurons)] = False
    block.mlp.fc2.weight[:, silent] = 0


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "q/k norm, layer scale"])
@pytest.mark.parametrize("embed", [False, True])
def test_sliced_equals_masked(variant: str, embed: bool) -> None:
    network = small_network(**VARIANTS[variant])
    plan, images = random_plan(network.structure, 5, embed=embed, tokens=False), images_for(network, 3)
    small = network.pruned(plan, None)
    with torch.no_grad():
        found = small.module.double()(images.double())
    assert (found - masked_outputs(network, plan, images)).abs().max() < TOLERANCE


def test_sliced_equals_masked_with_layer_scale_and_whole_heads_under_qk_norm() -> None:
    network = small_network(**VARIANTS["q/k norm, layer scale"])
    plan, images = random_plan(network.structure, 5, tokens=False, dims=False), images_for(network, 3)
    small = network.pruned(plan, None)
    with torch.no_grad():
        found = small.module.double()(images.double())
    assert (found - masked_outputs(network, plan, images)).abs().max() < TOLERANCE


def test_qk_norm_is_taken_over_the_kept_dims() -> None:
    network = small_network(qk_norm=True)
    small = network.pruned(random_plan(network.structure, 5, tokens=False), None)
    attention = small.pruned_blocks()[0].attention
    assert attention is not None
    q = torch.randn(2, 1, 5, attention.qk_dim)
    q = q.expand(-1, attention.heads, -1, -1)
    normed: Any = attention.q_norm
    plain = (q - q.mean(-1, keepdim=True)) / torch.sqrt(q.var(-1, keepdim=True, unbiased=False) + normed.eps)
    assert torch.allclose(normed(q), plain * normed.weight + normed.bias, atol=1e-5)


def test_the_identity_plan_changes_nothing() -> None:
    network = small_network(reg_tokens=1)
    images = images_for(network, 3)
    same = network.pruned(identity(network.structure), None)
    assert torch.allclose(same.outputs(images), network.outputs(images), atol=1e-5)


def test_heads_can_be_regrouped_from_several_sources() -> None:
    """Build two heads, each with half of the dims of two source heads.

    Compare them with attention that is written out with matrix products.
    """
    network = small_network(depth=1)
    whole, images = identity(network.structure), images_for(network, 2)
    heads = tuple(HeadPlan(tuple(range(a, a + 8)) + tuple(range(32, 40)), (*range(a, a + 8), 40, 41)) for a in (0, 16))
    small = network.pruned(Plan(whole.embed, (dataclasses.replace(whole.blocks[0], heads=heads),)), None)
    block: Any = network.blocks()[0]
    x = torch.randn(2, 5, 48)
    q, k, v = block.attn.qkv(x).split(48, -1)
    expected = block.attn.proj.bias.expand(2, 5, -1).clone()
    for head in heads:
        weights = torch.softmax(q[..., head.qk] @ k[..., head.qk].transpose(1, 2) * block.attn.scale, -1)
        expected = expected + (weights @ v[..., head.v]) @ block.attn.proj.weight[:, head.v].T
    attention = small.pruned_blocks()[0].attention
    assert attention is not None and torch.allclose(attention(x), expected, atol=1e-5)
    assert small.outputs(images).isfinite().all()


def test_blocks_and_halves_can_go() -> None:
    network = small_network()
    whole, images = identity(network.structure), images_for(network, 2)
    blocks = (
        dataclasses.replace(whole.blocks[0], heads=()),
        dataclasses.replace(whole.blocks[2], neurons=()),
    )
    small = network.pruned(Plan(whole.embed, blocks), None)
    model: Any = copy.deepcopy(network.module)
    with torch.no_grad():
        for index in (1, 3):
            for linear in (model.blocks[index].attn.proj, model.blocks[index].mlp.fc2):
                linear.weight.zero_(), linear.bias.zero_()
        model.blocks[0].attn.proj.weight.zero_(), model.blocks[0].attn.proj.bias.zero_()
        model.blocks[2].mlp.fc2.weight.zero_(), model.blocks[2].mlp.fc2.bias.zero_()
        expected = model(images)
    assert torch.allclose(small.outputs(images), expected, atol=1e-5)
    assert len(small.blocks()) == 2


def test_inputs_can_be_gathered() -> None:
    """As in VTP, q/k/v, the projection and fc1 read only some of their inputs. The residual stream keeps its width."""
    network = small_network(depth=1)
    whole, images = identity(network.structure), images_for(network, 2)
    inputs = tuple(range(0, 48, 2))
    block = dataclasses.replace(whole.blocks[0], qkv_inputs=inputs, proj_inputs=inputs, fc1_inputs=inputs[:10])
    small = network.pruned(Plan(whole.embed, (block,)), None)
    model: Any = copy.deepcopy(network.module)
    with torch.no_grad():
        for linear, kept in (
            (model.blocks[0].attn.qkv, inputs),
            (model.blocks[0].attn.proj, inputs),
            (model.blocks[0].mlp.fc1, inputs[:10]),
        ):
            gone = [i for i in range(linear.in_features) if i not in kept]
            linear.weight[:, gone] = 0
        expected = model(images)
    assert torch.allclose(small.outputs(images), expected, atol=1e-5)


def test_pruning_leaves_the_original_alone_and_assigns_no_forward() -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    small = network.pruned(random_plan(network.structure, 1, embed=True), None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert all("forward" not in vars(module) for module in small.module.modules())
    assert type(small.module) is type(network.module)


def test_tokens_cannot_be_chosen_without_attention() -> None:
    network = small_network()
    whole = identity(network.structure)
    first = dataclasses.replace(whole.blocks[0], heads=(), tokens=TokenPlan(4))
    with pytest.raises(InvalidRequest, match="removes its attention"):
        network.pruned(Plan(whole.embed, (first, *whole.blocks[1:])), None)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "pvt_v2_b0", "pit_ti_224"])
def test_features_keep_their_grid_when_no_tokens_go(name: str) -> None:
    """Check the features that detection and segmentation read."""
    network = untrained(name)
    plan = identity(network.structure)
    fewer = tuple(dataclasses.replace(block, neurons=block.neurons[:32]) for block in plan.blocks)
    small = network.pruned(dataclasses.replace(plan, blocks=fewer), None)
    original: Any = network.module
    pruned: Any = small.module
    x = torch.randn(1, *network.structure.image)
    with torch.inference_mode():
        dense, found = (one.forward_intermediates(x, intermediates_only=True) for one in (original, pruned))
        whole = pruned.forward_features(x)
    assert [features.shape for features in found] == [features.shape for features in dense]
    assert whole.shape == original.forward_features(x).shape
