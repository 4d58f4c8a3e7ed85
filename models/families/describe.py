"""Describe a PyTorch model of a known family as a `Structure`.

If the embedding width can be cut, the family names all parts outside of the blocks. Otherwise these parts are read from
a traced forward pass (`describe_stages`).
"""

from typing import Literal

from torch import nn

from models.families.describe_stages import describe_stages, head_count
from models.families.describe_widths import with_free_widths
from models.families.family import Family, blocks_of, is_present, linear_part, part
from models.families.stream_layers import FeatureMap, stream_writer
from models.structure import Attention, Block, Mlp, Op, Stage, Structure

__all__ = ["describe", "head_count"]


def describe(
    model: nn.Module, family: Family, name: str, size: tuple[int, int] | None = None, *, free_widths: bool = False
) -> Structure:
    """Return the structure of a model. A test compares its MACs and parameters with torch's own counter.

    size: height and width of the images, for a model that accepts any size. Other models know their size.
    free_widths: whether the streams of a model with stages are in rotated bases, so that their widths can be cut.
    """
    if "embed" in family.fixed:
        structure = describe_stages(model, family, name, size)
        return with_free_widths(structure, model, family) if free_widths else structure
    prefix = family.prefix(model)
    patches = family.grid(model)[0] * family.grid(model)[1]
    blocks = tuple(
        _block(block, family, f"{family.blocks}.{i}", prefix + patches)
        for i, block in enumerate(_children(part(model, family.blocks)))
    )
    stem, image = _stem(model, family, patches, prefix)
    tail, classes = _tail(model, family, prefix + patches)
    has_class_token = getattr(model, family.tables[0], None) is not None
    return Structure(
        name, image, classes, prefix, has_class_token, stem, (Stage(family.blocks, blocks, free_tokens=True),), tail
    )


def _children(module: nn.Module) -> list[nn.Module]:
    return list(module.children())


def _block(block: nn.Module, family: Family, name: str, tokens: int) -> Block:
    qkv, projection = linear_part(block, family.qkv), linear_part(block, family.projection)
    fc1 = linear_part(block, family.fc1)
    heads = head_count(block, family)
    dim = qkv.out_features // 3 // heads
    attention = Attention(
        heads,
        dim,
        dim,
        qkv.in_features,
        projection.in_features,
        qkv.bias is not None,
        projection.bias is not None,
        "shared" if is_present(part(block, family.q_norm)) else "none",
    )
    mlp = Mlp(fc1.in_features, fc1.out_features, fc1.bias is not None)
    return Block(
        name, qkv.in_features, tokens, attention, mlp, layer_scale=is_present(part(block, family.layer_scale1))
    )


def _stem(model: nn.Module, family: Family, patches: int, prefix: int) -> tuple[tuple[Op, ...], tuple[int, int, int]]:
    conv = part(model, family.patch)
    assert isinstance(conv, nn.Conv2d)
    width, (high, wide) = conv.out_channels, conv.kernel_size
    inner = conv.in_channels * high * wide
    writer = stream_writer(model, family)
    field: Literal["", "cols"] = "cols" if writer is None else ""
    bias = conv.bias is not None
    ops = [Op("conv", "patch", patches, width, inner=inner, weights=True, bias=bias, width_field=field)]
    for path in family.tables:
        table = getattr(model, path, None)
        if table is not None:
            ops.append(Op("table", path, table.shape[1], width, weights=True, width_field=field))
    norms = family.stem_norms if writer is None else tuple(f"{path}.norm" for path in family.stem_norms)
    ops += _norms(model, norms, width, prefix + patches, follows_tokens=False, field=field)
    if writer is not None:
        rows, made = prefix + patches, writer.linear.out_features
        ops.append(Op("matmul", "writer", rows, made, inner=width, weights=True, bias=True, width_field="cols"))
    size = family.image(model)
    assert size is not None
    return tuple(ops), (conv.in_channels, *size)


def _tail(model: nn.Module, family: Family, tokens: int) -> tuple[tuple[Op, ...], int]:
    width = linear_part(blocks_of(model, family)[0], family.qkv).in_features
    ops = _norms(model, (family.last_norm,), width, tokens, follows_tokens=True)
    if family.pooling(model) != "token":
        ops.append(Op("pool", "pool", tokens, width, width_field="cols", rows_are_tokens=True))
    ops += _norms(model, family.tail_norms, width, 1, follows_tokens=False)
    classes = 0
    for path in family.classifiers:
        if is_present(getattr(model, path, None)):
            head = linear_part(model, path)
            outputs = head.out_features
            classes = 0 if isinstance(head, FeatureMap) else outputs
            ops.append(
                Op(
                    "matmul",
                    path,
                    1,
                    outputs,
                    inner=width,
                    weights=True,
                    bias=head.bias is not None,
                    width_field="inner",
                )
            )
    return tuple(ops), classes


def _norms(
    model: nn.Module,
    paths: tuple[str, ...],
    width: int,
    rows: int,
    *,
    follows_tokens: bool,
    field: Literal["", "cols"] = "cols",
) -> list[Op]:
    return [
        Op(
            "norm",
            path,
            rows,
            width,
            weights=True,
            bias=getattr(part(model, path), "bias", None) is not None,
            width_field=field,
            rows_are_tokens=follows_tokens,
        )
        for path in paths
        if is_present(part(model, path))
    ]
