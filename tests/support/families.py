"""Small random networks of the families with stages, and plans for them."""

import copy
import dataclasses
import random
from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.data.preprocessing import Preprocessing
from models.networks.torch_network import TorchNetwork
from models.structure import BlockPlan, HeadPlan, Plan, Structure, TokenPlan, identity

PVT: dict[str, Any] = {
    "embed_dims": (8, 16, 24, 32),
    "num_heads": (1, 2, 3, 4),
    "depths": (1, 2, 1, 2),
    "mlp_ratios": (4, 4, 2, 2),
}
PIT: dict[str, Any] = {"img_size": 96, "base_dims": (8, 8, 8), "heads": (2, 4, 8), "depth": (1, 2, 3), "mlp_ratio": 2}
SWIN: dict[str, Any] = {
    "img_size": 64,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2, 2),
    "num_heads": (2, 4, 8),
    "mlp_ratio": 2,
}
SMALL: dict[str, tuple[str, int, dict[str, Any]]] = {
    "pvt_v2": ("pvt_v2_b0", 64, PVT),
    "pvt_v2, oblong image": ("pvt_v2_b0", 96, PVT | {"qkv_bias": False}),
    "pvt_v2, linear": ("pvt_v2_b2_li", 224, PVT | {"depths": (1, 1, 1, 1)}),
    "pit": ("pit_ti_224", 96, PIT),
    "swin": ("swin_tiny_patch4_window7_224", 64, SWIN),
    "swin, padded windows": ("swin_tiny_patch4_window7_224", 72, SWIN | {"img_size": 72, "window_size": 7}),
    "pit, distilled": ("pit_ti_distilled_224", 96, PIT),
}
"""For each variant: timm's name, the side of the image in pixels, and options."""
STAGES = {"pvt_v2": "stages", "pit": "transformers", "swin": "layers"}


def small_family(variant: str, seed: int = 0, **given: Any) -> TorchNetwork:
    """Return a network with weights that are large enough to make every part matter."""
    name, side, options = SMALL[variant]
    torch.manual_seed(seed)
    module = timm.create_model(name, **({"num_classes": 7} | options | given)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    size = (3, side, 64) if "oblong" in variant else (3, side, side)
    return TorchNetwork(module, name, dataclasses.replace(Preprocessing.of_model(module), size=size))


def family_plan(structure: Structure, seed: int, keep: float | None = None, tokens: bool = True) -> Plan:
    """Return a plan that removes heads and neurons: a random number, or down to the keep ratio `keep`.

    Where tokens and dims of heads may be removed, it removes some of them too.
    """
    draw, whole, blocks = random.Random(seed), identity(structure), []
    free = [stage.free_tokens for stage in structure.stages for _ in stage.blocks]
    patches = None
    for plan, block in zip(whole.blocks, structure.blocks, strict=True):
        assert block.attention is not None
        count = draw.randint(1, len(plan.heads)) if keep is None else max(1, round(keep * len(plan.heads)))
        heads = tuple(plan.heads[h] for h in sorted(draw.sample(range(len(plan.heads)), count)))
        if keep is None and "qk" not in structure.fixed:
            q, v = draw.randint(2, block.attention.qk_dim), draw.randint(2, block.attention.v_dim)
            heads = tuple(HeadPlan(_some(draw, h.qk, q), _some(draw, h.v, v)) for h in heads)
        size = len(plan.neurons)
        neurons = _some(draw, plan.neurons, draw.randint(4, size) if keep is None else round(keep * size))
        chosen = None
        if tokens and free[plan.source]:
            patches = max(1, int((patches or block.tokens - structure.prefix) * 0.7))
            chosen = TokenPlan(patches, "fuse")
        blocks.append(dataclasses.replace(plan, heads=heads, neurons=neurons, tokens=chosen))
    return Plan(whole.embed, tuple(blocks))


def blocks_of(model: nn.Module, variant: str) -> list[Any]:
    """Return the blocks of the original, by timm's own names."""
    stages = getattr(model, STAGES[variant.split(",")[0]])
    return [block for stage in stages for block in stage.blocks]


def masked_outputs(network: TorchNetwork, variant: str, plan: Plan, images: Tensor) -> Tensor:
    """Return the logits of the original, in float64. All parts that the plan removes are silent, except tokens."""
    model = copy.deepcopy(network.module).double()
    blocks = blocks_of(model, variant)
    with torch.no_grad():
        for wanted in plan.blocks:
            _silence(blocks[wanted.source], wanted)
        found: Tensor = model(images.double())
    return found


def _silence(block: Any, plan: BlockPlan) -> None:
    maker = block.attn.q if hasattr(block.attn, "q") else block.attn.qkv
    width = block.attn.proj.in_features
    gone = [i for i in range(width) if i not in {i for head in plan.heads for i in head.qk}]
    maker.weight[gone] = 0  # a silent q dim adds nothing to any logit
    if maker.bias is not None:
        maker.bias[gone] = 0
    block.attn.proj.weight[:, [i for i in range(width) if i not in {i for head in plan.heads for i in head.v}]] = 0
    block.mlp.fc2.weight[:, [i for i in range(block.mlp.fc2.in_features) if i not in set(plan.neurons)]] = 0


def _some(draw: random.Random, members: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(sorted(draw.sample(members, count)))
