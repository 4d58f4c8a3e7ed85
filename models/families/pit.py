"""timm's PoolingVisionTransformer: every pit_*. Plain blocks in stages; convolutions shrink the grid between stages.

After the blocks of the last stage, no layer reads the patch tokens. So tokens may be removed in the last stage.
"""

from timm.models.pit import PoolingVisionTransformer
from torch import nn

from models.families.family import Family, is_present, part
from models.families.stage_widths import pit_streams
from models.families.vision_transformer import block_refusals


def _refusals(model: nn.Module) -> list[str]:
    assert isinstance(model, PoolingVisionTransformer)
    reasons = []
    if model.global_pool != "token":
        reasons.append(f"pooling {model.global_pool!r} (allowed: token)")
    if is_present(model.head) and not isinstance(model.head, nn.Linear):
        reasons.append(f"classifier {type(model.head).__name__} (allowed: a linear layer or no classifier)")
    for number, stage in enumerate(model.transformers):
        for index, block in enumerate(part(stage, "blocks").children()):
            found = block_refusals(block)
            if found:
                return [*reasons, *(f"stage {number}, block {index}: {reason}" for reason in found)]
    return reasons


def _image(model: nn.Module) -> tuple[int, int]:
    assert isinstance(model, PoolingVisionTransformer)
    height, width = model.patch_embed.img_size
    return int(height), int(width)


def _prefix(model: nn.Module) -> int:
    assert isinstance(model, PoolingVisionTransformer)
    return int(model.num_tokens)


PIT = Family(
    name="pit",
    title="PiT (timm PoolingVisionTransformer)",
    matches=lambda model: type(model) is PoolingVisionTransformer,
    refusals=_refusals,
    blocks="transformers.*.blocks",
    image=_image,
    prefix=_prefix,
    norm1="norm1",
    attention_layers={"attn.qkv": "qkv"},
    q_norm="attn.q_norm",
    k_norm="attn.k_norm",
    heads="attn.num_heads",
    scale="attn.scale",
    projection="attn.proj",
    layer_scale1="ls1",
    norm2="norm2",
    fc1="mlp.fc1",
    activation="mlp.act",
    fc2="mlp.fc2",
    layer_scale2="ls2",
    free_tokens=lambda stage, stages: stage == stages - 1,
    grid_after=True,
    classifiers=("head", "head_dist"),
    streams=pit_streams,
    fixed=("embed",),
)
