"""timm's VisionTransformer and VisionTransformerDistilled with plain blocks: every DeiT, most vit_*."""

from timm.layers import Attention, LayerNorm, Mlp, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from models.families.family import Family, is_present
from models.families.stream_parts import plain_streams

NORMS = (nn.LayerNorm, LayerNorm)
POOLINGS = {name: name for name in ("token", "avg")}


def _refusals(model: nn.Module) -> list[str]:
    assert isinstance(model, VisionTransformer)
    reasons = []
    if type(model.patch_embed) is not PatchEmbed or not isinstance(model.patch_embed.proj, nn.Conv2d):
        reasons.append(f"patch embedding {type(model.patch_embed).__name__} (allowed: PatchEmbed with a convolution)")
    elif is_present(model.patch_embed.norm):
        reasons.append("a norm inside the patch embedding")
    elif model.patch_embed.img_size is None:
        reasons.append("no fixed image size (create the model with img_size)")
    elif 0 in model.patch_embed.grid_size:
        reasons.append(f"an image size of {model.patch_embed.img_size}, which is smaller than one patch")
    if not len(model.blocks):
        reasons.append("no blocks")
    if model.dynamic_img_size:
        reasons.append("dynamic image size (create it with dynamic_img_size=False)")
    if model.attn_pool is not None or model.global_pool not in POOLINGS:
        reasons.append(f"pooling {model.global_pool!r} (allowed: token, avg)")
    if is_present(model.head) and not isinstance(model.head, nn.Linear):
        reasons.append(f"classifier {type(model.head).__name__} (allowed: a linear layer or no classifier)")
    for index, block in enumerate(model.blocks):
        found = block_refusals(block)
        if found:
            return [*reasons, *(f"block {index}: {reason}" for reason in found)]
    return reasons


def block_refusals(block: nn.Module) -> list[str]:
    """Return the reasons why a block cannot be handled.

    In timm all blocks of a model are of the same kind. Every block is checked anyway.
    """
    if type(block) is not Block:
        return [f"{type(block).__name__} (allowed: Block)"]
    reasons = []
    if type(block.attn) is not Attention:
        reasons.append(f"attention {type(block.attn).__name__} (allowed: Attention)")
    elif is_present(block.attn.norm) or block.attn.gate is not None:
        reasons.append("a norm or a gate after the attention")
    elif is_present(block.attn.q_norm) and not isinstance(block.attn.q_norm, NORMS):
        reasons.append(f"q/k norm {type(block.attn.q_norm).__name__} (allowed: LayerNorm)")
    if type(block.mlp) is not Mlp:
        reasons.append(f"MLP {type(block.mlp).__name__} (allowed: Mlp)")
    elif getattr(block.mlp.fc1, "out_features", 1) == 0:
        reasons.append("an MLP without neurons")
    elif is_present(block.mlp.norm) or not isinstance(block.mlp.fc1, nn.Linear):
        reasons.append("a norm or convolution inside the MLP")
    if not isinstance(block.norm1, NORMS) or block.norm1.weight is None:
        reasons.append(f"norm {type(block.norm1).__name__} (allowed: LayerNorm with weights)")
    return reasons


def _grid(model: nn.Module) -> tuple[int, int]:
    assert isinstance(model, VisionTransformer)
    height, width = model.patch_embed.grid_size
    return int(height), int(width)


def _image(model: nn.Module) -> tuple[int, int]:
    assert isinstance(model, VisionTransformer)
    height, width = model.patch_embed.img_size
    return int(height), int(width)


def _prefix(model: nn.Module) -> int:
    assert isinstance(model, VisionTransformer)
    return int(model.num_prefix_tokens)


def _pooling(model: nn.Module) -> str:
    assert isinstance(model, VisionTransformer)
    pooling = POOLINGS[str(model.global_pool)]
    return "all" if pooling == "avg" and model.pool_include_prefix else pooling


VISION_TRANSFORMER = Family(
    name="vision_transformer",
    title="plain vision transformer (timm VisionTransformer, VisionTransformerDistilled)",
    matches=lambda model: type(model) in (VisionTransformer, VisionTransformerDistilled),
    refusals=_refusals,
    blocks="blocks",
    patch="patch_embed.proj",
    tables=("cls_token", "dist_token", "reg_token", "pos_embed"),
    stem_norms=("norm_pre",),
    last_norm="norm",
    tail_norms=("fc_norm",),
    classifiers=("head", "head_dist"),
    width_attributes=("num_features", "head_hidden_size", "embed_dim"),
    streams=plain_streams,
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
    drop_paths=("drop_path1", "drop_path2"),
    grid=_grid,
    image=_image,
    prefix=_prefix,
    pooling=_pooling,
)
