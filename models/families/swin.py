"""timm's SwinTransformer (version 1): attention in windows, with a table of relative positions for each head.

The windows are shifted in every other block. Windows and patch merging need the token grid. In the last stage one
window may hold the complete grid (as at 224 pixels). Only then may tokens be removed there. Each token that stays keeps
its position for the table of relative positions.
"""

from timm.layers import ClassifierHead, Mlp, PatchEmbed
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import nn

from models.families.family import Family, is_present, part
from models.families.stage_widths import swin_streams
from models.families.vision_transformer import NORMS


def _refusals(model: nn.Module) -> list[str]:
    assert isinstance(model, SwinTransformer)
    reasons = []
    if type(model.patch_embed) is not PatchEmbed:
        reasons.append(f"patch embedding {type(model.patch_embed).__name__} (allowed: PatchEmbed with a convolution)")
    if model.dynamic_img_size or model.patch_embed.img_size is None:
        reasons.append("dynamic image size (create it with dynamic_img_size=False)")
    if type(model.head) is not ClassifierHead or model.head.global_pool.pool_type != "avg":
        reasons.append(f"pooling {model.global_pool!r} (allowed: avg)")
    elif is_present(model.head.fc) and not isinstance(model.head.fc, nn.Linear):
        reasons.append(f"classifier {type(model.head.fc).__name__} (allowed: a linear layer or no classifier)")
    for number, stage in enumerate(model.layers):
        if type(stage.downsample) not in (nn.Identity, PatchMerging):
            reasons.append(f"stage {number}: merging {type(stage.downsample).__name__} (allowed: PatchMerging)")
        for index, block in enumerate(part(stage, "blocks").children()):
            found = _block_refusals(block)
            if found:
                return [*reasons, *(f"stage {number}, block {index}: {reason}" for reason in found)]
    return reasons


def _block_refusals(block: nn.Module) -> list[str]:
    if type(block) is not SwinTransformerBlock:
        return [f"{type(block).__name__} (allowed: SwinTransformerBlock)"]
    reasons = []
    if type(block.attn) is not WindowAttention:
        reasons.append(f"attention {type(block.attn).__name__} (allowed: WindowAttention)")
    if type(block.mlp) is not Mlp or is_present(block.mlp.norm) or not isinstance(block.mlp.fc1, nn.Linear):
        reasons.append(f"MLP {type(block.mlp).__name__} (allowed: Mlp with linear layers and without a norm)")
    if not isinstance(block.norm1, NORMS):
        reasons.append(f"norm {type(block.norm1).__name__} (allowed: LayerNorm)")
    return reasons


def _image(model: nn.Module) -> tuple[int, int]:
    assert isinstance(model, SwinTransformer)
    height, width = model.patch_embed.img_size  # type: ignore[misc]
    return int(height), int(width)


SWIN = Family(
    name="swin",
    title="Swin (timm SwinTransformer)",
    matches=lambda model: type(model) is SwinTransformer,
    refusals=_refusals,
    blocks="layers.*.blocks",
    image=_image,
    prefix=lambda model: 0,
    norm1="norm1",
    attention_layers={"attn.qkv": "qkv"},
    heads="attn.num_heads",
    head_tables={"attn.relative_position_bias_table": 1},
    position_index="attn.relative_position_index",
    scale="attn.scale",
    projection="attn.proj",
    norm2="norm2",
    fc1="mlp.fc1",
    activation="mlp.act",
    fc2="mlp.fc2",
    free_tokens=lambda stage, stages: stage == stages - 1,
    last_norm="norm",
    pooling=lambda model: "avg",
    classifiers=("head.fc",),
    streams=swin_streams,
    fixed=("embed", "inputs", "qk", "v"),
    sliced=True,
)
