"""Tests of Swin.

The last stage may lose tokens if one window holds its grid. The tokens that stay keep their positions.
"""

import dataclasses
from typing import Any

import pytest
import torch

from models.errors import InvalidRequest
from models.networks.torch_network import TorchNetwork
from models.structure import Plan, Reducer, TokenPlan, identity
from tests.support.families import small_family
from tests.support.networks import images_for

LAST = 4
"""The first block of the last stage.

The small network has 3 stages with 2 blocks each. The last stage has 16 tokens.
"""


def with_tokens(network: TorchNetwork, tokens: dict[int, TokenPlan]) -> Plan:
    whole = identity(network.structure)
    return Plan(whole.embed, tuple(dataclasses.replace(b, tokens=tokens.get(b.source)) for b in whole.blocks))


def test_tokens_are_free_only_where_one_window_holds_the_grid() -> None:
    assert [stage.free_tokens for stage in small_family("swin").structure.stages] == [False, False, True]
    divided = small_family("swin", window_size=2)
    assert not any(stage.free_tokens for stage in divided.structure.stages)
    with pytest.raises(InvalidRequest, match="later layer needs their grid"):
        divided.pruned(with_tokens(divided, {LAST: TokenPlan(4)}), None)


@pytest.mark.parametrize("reducer", ["drop", "fuse"])
def test_tokens_that_stay_keep_their_places(reducer: Reducer) -> None:
    """Compare with the second block, computed token by token, with the position bias of each pair of tokens."""
    network = small_family("swin")
    model: Any = network.module
    images = images_for(network, 2)
    small = network.pruned(with_tokens(network, {LAST: TokenPlan(5, reducer)}), None)
    with torch.no_grad():
        x = model.layers[2].downsample(model.layers[1](model.layers[0](model.patch_embed(images)))).flatten(1, 2)
        first, second = model.layers[2].blocks
        bias = [
            b.attn.relative_position_bias_table[b.attn.relative_position_index].permute(2, 0, 1)
            for b in (first, second)
        ]
        x, weights = attend(first, x, bias[0])
        kept = weights.mean(dim=(1, 2)).topk(5).indices
        rows = []
        for image, places in zip(x, kept, strict=True):
            others = [i for i in range(16) if i not in places.tolist()]
            package = [image[others].mean(0, keepdim=True)] if reducer == "fuse" else []
            rows.append(torch.cat([image[places], *package]))
        x = torch.stack(rows)
        x = x + first.mlp(first.norm2(x))
        pairs = torch.zeros(2, bias[1].shape[0], x.shape[1], x.shape[1])
        for image in range(2):
            pairs[image, :, :5, :5] = bias[1][:, kept[image]][:, :, kept[image]]
        x, _ = attend(second, x, pairs)
        x = model.norm(x + second.mlp(second.norm2(x)))
        sizes = torch.tensor([1.0] * 5 + [11.0] * (x.shape[1] - 5))
        expected = model.head.fc((x * sizes[:, None]).sum(1) / sizes.sum())
    assert torch.allclose(small.outputs(images), expected, atol=1e-4)
    assert [op.rows for op in small.structure.tail if op.kind == "norm"] == [x.shape[1]]


def attend(block: Any, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + attention, and the attention after softmax."""
    attn = block.attn
    q, k, v = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) * attn.scale + bias, -1)
    return x + attn.proj((weights @ v).transpose(1, 2).flatten(2)), weights


def test_merged_tokens_have_no_place() -> None:
    network = small_family("swin")
    plan = with_tokens(network, {LAST: TokenPlan(5, "merge", score="similarity")})
    with pytest.raises(InvalidRequest, match="no place"):
        network.pruned(plan, None)
