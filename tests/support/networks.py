"""Small random networks and plans for tests."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor

from models.data.preprocessing import Preprocessing
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork
from models.structure import HeadPlan, Layer, Plan, Structure, TokenPlan, identity

VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "q/k norm, layer scale": {"qk_norm": True, "init_values": 0.3},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "average pooling": {"class_token": False, "global_pool": "avg"},
    "average pooling, norm before": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "no biases, pre-norm": {"qkv_bias": False, "pre_norm": True},
    "oblong": {"img_size": (32, 48), "patch_size": (8, 16)},
}


def small_network(seed: int = 0, name: str = "vit_tiny_patch16_224", **options: Any) -> TorchNetwork:
    """Return a network of a few blocks, with weights that are large enough to make every part matter."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {
        "img_size": 48,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 4,
        "num_heads": 3,
        "num_classes": 7,
    }
    module = timm.create_model(name, **(given | options)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return TorchNetwork(module, name, Preprocessing.of_model(module))


def images_for(network: Network, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *network.structure.image, generator=torch.Generator().manual_seed(seed))


def random_plan(structure: Structure, seed: int, embed: bool = False, tokens: bool = True, dims: bool = True) -> Plan:
    """Return a plan that removes some members of every axis.

    A head keeps dims of its own source head, in the same order.
    """
    draw = random.Random(seed)
    whole, patches, blocks = identity(structure), structure.tokens - structure.prefix, []
    for plan, block in zip(whole.blocks, structure.blocks, strict=True):
        assert block.attention is not None
        q = draw.randint(2, block.attention.qk_dim) if dims else block.attention.qk_dim
        v = draw.randint(2, block.attention.v_dim) if dims else block.attention.v_dim
        sources = sorted(draw.sample(range(len(plan.heads)), draw.randint(1, len(plan.heads))))
        heads = tuple(HeadPlan(_some(draw, plan.heads[h].qk, q), _some(draw, plan.heads[h].v, v)) for h in sources)
        kept = None
        if tokens and plan.source in (1, 2):
            patches = max(1, int(patches * 0.6))
            kept = TokenPlan(patches, "fuse")
        neurons = _some(draw, plan.neurons, draw.randint(4, len(plan.neurons)))
        blocks.append(dataclasses.replace(plan, heads=heads, neurons=neurons, tokens=kept))
    width = structure.width - 8 if embed else structure.width
    return Plan(_some(draw, whole.embed, width), tuple(blocks))


def in_int8(plan: Plan, exact: Sequence[Layer] = ()) -> Plan:
    blocks = tuple(dataclasses.replace(block, exact=tuple(exact)) for block in plan.blocks)
    return dataclasses.replace(plan, blocks=blocks, precision="int8")


def _some(draw: random.Random, members: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(sorted(draw.sample(members, count)))
