"""Tests of PiT. Only the last stage may lose tokens. The choice of tokens uses the grid of that stage."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from models.errors import InvalidRequest
from models.networks.torch_network import TorchNetwork
from models.structure import Plan, TokenPlan, TokenScore, identity
from search.methods import METHODS
from search.policy import Policy
from search.ranking import unranked
from search.spaces import space_of
from search.token_rule import TokenRule
from tests.support.families import small_family
from tests.support.networks import images_for

LAST = 3
"""The first block of the last stage. The stages of the small network have 1, 2 and 3 blocks."""


def with_tokens(network: TorchNetwork, tokens: dict[int, TokenPlan]) -> Plan:
    whole = identity(network.structure)
    return Plan(whole.embed, tuple(dataclasses.replace(b, tokens=tokens.get(b.source)) for b in whole.blocks))


def attend(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x + attention, and the attention after softmax, computed step by step."""
    attn, heads = block.attn, block.attn.num_heads
    q, k, v = attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) * attn.scale, -1)
    return x + attn.proj((weights @ v).transpose(1, 2).flatten(2)), weights


@pytest.mark.parametrize("variant", ["pit", "pit, distilled"])
def test_the_tokens_that_go_are_those_that_the_class_token_sees_least(variant: str) -> None:
    network = small_family(variant)
    model: Any = network.module
    images = images_for(network, 3)
    small = network.pruned(with_tokens(network, {LAST: TokenPlan(4, "drop")}), None)
    prefix = network.structure.prefix
    with torch.no_grad():
        x = model.patch_embed(images) + model.pos_embed
        state = (x, model.cls_token.expand(3, -1, -1))
        state = model.transformers[1](model.transformers[0](state))
        x, classes = model.transformers[2].pool(*state)
        x = torch.cat([classes, x.flatten(2).transpose(1, 2)], dim=1)
        first, *others = model.transformers[2].blocks
        x, weights = attend(first, x)
        kept = weights[:, :, 0, prefix:].mean(1).topk(4).indices
        body = x[:, prefix:].gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :prefix], body], dim=1)
        x = x + first.mlp(first.norm2(x))
        for block in others:
            x = block(x)
        expected = model.forward_head(model.norm(x[:, :prefix]))
    assert torch.allclose(small.outputs(images), expected, atol=1e-4)
    assert small.structure.blocks[-1].tokens == prefix + 4


def test_tokens_of_an_earlier_stage_cannot_go() -> None:
    network = small_family("pit")
    with pytest.raises(InvalidRequest, match=r"later layer needs their grid.* 3, 4, 5"):
        network.pruned(with_tokens(network, {1: TokenPlan(4)}), None)


def test_attention_of_an_earlier_stage_does_not_rank_the_last() -> None:
    network = small_family("pit")
    with pytest.raises(InvalidRequest, match="no attention before it"):
        network.pruned(with_tokens(network, {LAST: TokenPlan(4, at="start")}), None)
    assert TokenRule(at="start", depths=(0.5,)).stages(network.structure) == ()
    assert TokenRule(at="start", depths=(0.5, 0.7)).stages(network.structure) == (LAST + 1,)


@pytest.mark.parametrize("score", ["cumulative", "attention"])
def test_tokens_can_go_at_the_start_of_later_blocks(score: TokenScore) -> None:
    network = small_family("pit")
    plans = {i: TokenPlan(kept, "weighted", "start", score) for i, kept in ((LAST + 1, 5), (LAST + 2, 2))}
    small = network.pruned(with_tokens(network, plans), None)
    assert small.outputs(images_for(network, 2)).isfinite().all()
    assert [block.tokens_out for block in small.structure.blocks[LAST:]] == [10, 7, 4]


def test_a_space_counts_the_patches_of_the_last_stage() -> None:
    """The last stage has 9 patches, the stage before it has 36 and the first stage has 121."""
    structure = small_family("pit").structure
    space = space_of(METHODS["joint"], structure, unranked(structure))
    assert [name for name in space.dimensions if name.startswith("tokens")] == ["tokens0", "tokens1"]
    plan = space.plan(Policy(tokens=(0.67, 0.5)))
    assert [b.tokens.kept for b in plan.blocks if b.tokens is not None] == [6, 3]
    assert space.sketch(Policy(tokens=(0.67, 0.5))).tail == structure.tail
