"""Narrows the residual stream outside the blocks, and the norms that read a narrower stream."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from models.families.family import Family, optional_part, part, replace_part
from models.families.stream_layers import stream_writer
from models.pruning.prune_layers import narrow_linear, narrow_norm, take
from models.pruning.pruned_blocks import PrunedBlock, PrunedBlocks


def narrow_ends(model: nn.Module, family: Family, embed: Sequence[int]) -> None:
    """Reduce the embedding width of all layers outside the blocks.

    Changes `model`, which is a copy made by `models.pruning.prune`.
    """
    if (writer := stream_writer(model, family)) is not None:
        writer.linear = narrow_linear(writer.linear, embed, range(writer.linear.in_features))
    else:
        _narrow_embedding(model, family, embed)
    for path in (family.last_norm, *family.tail_norms):
        replace_part(model, path, narrow_norm(part(model, path), embed))
    for path in family.classifiers:
        head = getattr(model, path, None)
        if isinstance(head, nn.Linear):
            setattr(model, path, narrow_linear(head, range(head.out_features), embed))
    for name in family.width_attributes:
        setattr(model, name, len(embed))


def _narrow_embedding(model: nn.Module, family: Family, embed: Sequence[int]) -> None:
    conv = part(model, family.patch)
    assert isinstance(conv, nn.Conv2d)
    conv.out_channels = len(embed)
    conv.weight = nn.Parameter(take(conv.weight, 0, embed))
    if conv.bias is not None:
        conv.bias = nn.Parameter(take(conv.bias, 0, embed))
    for path in family.tables:
        table = getattr(model, path, None)
        if table is not None:
            setattr(model, path, nn.Parameter(take(table, 2, embed)))
    for path in family.stem_norms:
        replace_part(model, path, narrow_norm(part(model, path), embed))


def rescale_norms(model: nn.Module, family: Family, share: float) -> None:
    """Multiply the weights of all norms on the stream by share^-1/2, in place. share: width over original width.

    The eps of a norm is a mean square too, so it is divided by the share.

    In a rotated basis the dims that are gone carry next to nothing, so the sum of squares of a token stays what it was.
    A norm divides by the mean square instead, which is a mean over fewer dims (models/rotation/stream_basis.py).
    """
    with torch.no_grad():
        for norm in _norms(model, family):
            norm.weight.mul_(share**-0.5)
            norm.eps /= share


def _norms(model: nn.Module, family: Family) -> Iterator[nn.LayerNorm]:
    for module in model.modules():
        if isinstance(module, PrunedBlock):
            found = [module.norm1, module.norm2]
        elif isinstance(module, PrunedBlocks):
            found = [module.last_norm]
        else:
            continue
        yield from (norm for norm in found if isinstance(norm, nn.LayerNorm))
    for path in (family.last_norm, *family.tail_norms):
        norm = optional_part(model, path)
        if isinstance(norm, nn.LayerNorm):
            yield norm
