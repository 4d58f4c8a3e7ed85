"""Tests of the token reducers. They compare them with plain code, written after the papers, for one image at a time."""

import dataclasses
from typing import Any

import pytest
import torch

from models.pruning import token_reducers as tokens
from models.structure import Plan, TokenPlan, identity
from tests.support.networks import images_for, small_network


def test_ties_go_to_the_lower_index() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0]])
    assert tokens.best_tokens(scores, 2).tolist() == [[1, 2]]
    assert tokens.best_tokens(torch.ones(1, 500), 3).tolist() == [[0, 1, 2]]


def test_scores_skip_the_prefix() -> None:
    attention = torch.softmax(torch.randn(2, 3, 6, 6), -1)
    by_class = tokens.class_attention(attention, slice(2, None))
    received = tokens.received_attention(attention, slice(0, None))
    assert torch.allclose(by_class[1, 0], attention[1, :, 0, 2].mean())
    assert torch.allclose(received[0, 3], attention[0, :, :, 3].mean())
    assert by_class.shape == (2, 4) and received.shape == (2, 6)


def test_dropping_keeps_the_prefix_and_an_earlier_package() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1)
    kept = tokens.drop(x, torch.tensor([[2, 0]]), prefix=1, patches=4)
    assert kept.flatten().tolist() == [0, 3, 1, 5]


def test_fusing_leaves_the_mean_of_the_removed() -> None:
    x = torch.tensor([100.0, 1, 2, 3, 6]).reshape(1, 5, 1)
    kept = tokens.fuse(x, torch.tensor([[1]]), prefix=1, patches=4, packaged=0)
    assert torch.allclose(kept.flatten(), torch.tensor([100.0, 2, (1 + 3 + 6) / 3]))


def test_a_second_fusion_merges_with_the_earlier_package() -> None:
    """The fused token counts for all tokens that it stands for.

    At the end it is the mean of all tokens that were ever removed.
    """
    x = torch.tensor([100.0, 1, 2, 3, 6, 12]).reshape(1, 6, 1)
    first = tokens.fuse(x, torch.tensor([[0, 1, 2]]), prefix=1, patches=5, packaged=0)
    second = tokens.fuse(first, torch.tensor([[1]]), prefix=1, patches=3, packaged=2)
    assert torch.allclose(second.flatten(), torch.tensor([100.0, 2, (6 + 12 + 1 + 3) / 4]))


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}])
def test_the_most_attended_tokens_survive(options: dict[str, Any]) -> None:
    """The reduction inside a block keeps the tokens that get the most attention of this block."""
    network = small_network(depth=2, **options)
    whole, images = identity(network.structure), images_for(network, 1)
    first = dataclasses.replace(whole.blocks[0], tokens=TokenPlan(5, "drop"))
    small = network.pruned(Plan(whole.embed, (first, whole.blocks[1])), None)
    module: Any = network.module
    block = module.blocks[0]
    with torch.no_grad(), small.reductions()[0].recorded() as chosen:
        small.module(images)
        x = module._pos_embed(module.patch_embed(images))
        q, k, _ = block.attn.qkv(block.norm1(x)).reshape(1, -1, 3, 3, 16).permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.transpose(-2, -1) * block.attn.scale, -1)
        scores = attention[0, :, 0, 1:].mean(0) if network.structure.prefix else attention[0].mean((0, 1))
    assert sorted(chosen[0][0].tolist()) == sorted(scores.argsort(descending=True)[:5].tolist())


@pytest.mark.parametrize("fc_norm", [None, False])
def test_with_average_pooling_tokens_count_as_much_as_they_stand_for(fc_norm: bool | None) -> None:
    """The blocks change nothing.

    The pooled mean therefore equals the mean of all tokens with equal weights, however many tokens are fused.
    """
    network = small_network(depth=2, class_token=False, global_pool="avg", fc_norm=fc_norm)
    module: Any = network.module
    with torch.no_grad():
        for block in module.blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight.zero_(), linear.bias.zero_()
        # A norm per token does not commute with the mean, so the test removes the norm.
        if fc_norm is False:
            module.norm = torch.nn.Identity()
    whole, images = identity(network.structure), images_for(network, 2)
    blocks = (
        dataclasses.replace(whole.blocks[0], tokens=TokenPlan(20, "fuse")),
        dataclasses.replace(whole.blocks[1], tokens=TokenPlan(3, "fuse")),
    )
    small = network.pruned(Plan(whole.embed, blocks), None)
    assert torch.allclose(small.outputs(images), network.outputs(images), atol=1e-4)
