"""Builds timm's vision transformer from the parts that were read from a graph (models/graph/plain_layers.py)."""

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.graph.plain_layers import Plain, PlainBlock, agrees, read_plain
from models.graph.plain_probe import Affine, Norm, NotPlain
from models.graph.tracing.sublayers import GraphBlock
from models.graph.tracing.trace import Traced


def plain_transformer(traced: Traced, blocks: list[GraphBlock], classes: int) -> VisionTransformer | None:
    """Return a vision transformer that computes the same as a graph, or None if there is none.

    classes: number of classes; 0 if the graph returns features. A transformer that ends without a classifier returns
    features, whatever the name of its output says.
    """
    if next(traced.graph.parameters()).is_meta:
        return None
    try:
        module = build(read_plain(traced, blocks))
    except (
        NotPlain,
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
        AssertionError,
    ):  # a part that fails on the chosen inputs is not plain
        return None
    return module if module.num_classes in {classes, 0} and agrees(traced, module) else None


def build(plain: Plain) -> VisionTransformer:
    """Build timm's module.

    Raises: NotPlain when blocks differ in their number of heads or neurons, or in activation.
    """
    first, stem, tail = plain.blocks[0], plain.stem, plain.tail
    neurons = len(first.fc1.bias)
    if any((block.heads, len(block.fc1.bias)) != (first.heads, neurons) for block in plain.blocks):
        raise NotPlain("the blocks have different numbers of heads or neurons")
    if any(type(block.activation) is not type(first.activation) for block in plain.blocks):
        raise NotPlain("the blocks have different activations")
    channels, *image = plain.image
    width = stem.tokens.shape[1]
    with torch.device("meta"):
        kind = VisionTransformer if tail.second is None else VisionTransformerDistilled
        module = kind(
            img_size=(image[0], image[1]),
            patch_size=(stem.patch.shape[-2], stem.patch.shape[-1]),
            in_chans=channels,
            embed_dim=width,
            num_classes=0 if tail.head is None else len(tail.head.bias),
            depth=len(plain.blocks),
            num_heads=first.heads,
            global_pool="token" if tail.pooling == "token" else "avg",
            pool_include_prefix=tail.pooling == "all",
            qkv_bias=_has_bias(plain),
            class_token=stem.prefix > 0,
            reg_tokens=max(0, stem.prefix - 1) if tail.second is None else 0,
            pre_norm=stem.norm is not None,
            final_norm=tail.norm is not None,
            fc_norm=tail.norm is not None and not tail.first,
            weight_init="skip",
        )
    module.patch_embed.proj = _convolution(stem.patch)
    _write_tokens(module, stem.tokens, stem.prefix)
    for name, norm in (("norm_pre", stem.norm), ("norm" if tail.first else "fc_norm", tail.norm)):
        if norm is not None:
            setattr(module, name, _norm(norm))
    if tail.head is not None:
        module.head = _linear(tail.head)
    if tail.second is not None:
        module.head_dist = _linear(tail.second)
    for block, found in zip(module.blocks, plain.blocks, strict=True):
        _write_block(block, found)
    return module.eval()


def _has_bias(plain: Plain) -> bool:
    """Return whether the layer of q, k and v has a bias.

    If all biases of fc1 are zero too, the weights are probably freshly initialised. Zero biases prove nothing then,
    and the layer gets a bias.
    """
    qkv = any(bool(block.qkv.bias.any()) for block in plain.blocks)
    return qkv or not any(bool(block.fc1.bias.any()) for block in plain.blocks)


def _write_tokens(module: VisionTransformer, tokens: Tensor, prefix: int) -> None:
    """Write the tokens that a black image gives.

    The rows of the patches go into the position embedding. The rows before them become class, distillation and register
    tokens, whose position embedding is zero.
    """
    positions = tokens.clone()
    positions[:prefix] = 0
    module.pos_embed = nn.Parameter(positions[None])
    if prefix:
        module.cls_token = nn.Parameter(tokens[None, :1].clone())
    if prefix > 1:
        name = "dist_token" if isinstance(module, VisionTransformerDistilled) else "reg_token"
        setattr(module, name, nn.Parameter(tokens[None, 1:prefix].clone()))


def _write_block(block: nn.Module, found: PlainBlock) -> None:
    block.norm1, block.norm2 = _norm(found.norm1), _norm(found.norm2)
    attention, mlp = block.attn, block.mlp
    assert isinstance(attention, nn.Module) and isinstance(mlp, nn.Module)
    attention.qkv = _linear(found.qkv, bias=attention.qkv.bias is not None)  # type: ignore[union-attr]
    attention.proj = _linear(found.projection)
    mlp.fc1, mlp.act, mlp.fc2 = _linear(found.fc1), found.activation, _linear(found.fc2)


def _convolution(weight: Tensor) -> nn.Conv2d:
    width, channels, high, wide = weight.shape
    layer = nn.Conv2d(channels, width, (high, wide), stride=(high, wide))
    layer.weight = nn.Parameter(weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _linear(found: Affine, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(found.weight.shape[1], found.weight.shape[0], bias=bias, device="meta")
    layer.weight = nn.Parameter(found.weight)
    if bias:
        layer.bias = nn.Parameter(found.bias)
    return layer


def _norm(found: Norm) -> nn.LayerNorm:
    layer = nn.LayerNorm(len(found.weight), eps=found.eps)
    layer.weight, layer.bias = nn.Parameter(found.weight), nn.Parameter(found.bias)
    return layer
