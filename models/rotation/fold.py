"""Folds what stands between the residual stream and its linear layers into these layers, so that a basis is free.

The weight and bias of a norm go into the layers that read it; layer scales go into the layers that write before them.
The network computes the same as before, with fewer operations: a folded layer scale is gone.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.families.family import Family, blocks_of, classifiers, linear_part, optional_part, part, replace_part
from models.families.stream_layers import FeatureMap, StreamWriter
from models.structure import Structure


def fold(module: nn.Module, family: Family, structure: Structure, *, stream: bool) -> None:
    """Fold the layer scales of a dense module, in place. stream: fold its norms too.

    If the norms are folded, a model without a classifier gets a `FeatureMap` in its place, and a norm before the blocks
    becomes a `StreamWriter`.
    """
    for block in blocks_of(module, family):
        _fold_scale(block, family.layer_scale1, linear_part(block, family.projection))
        _fold_scale(block, family.layer_scale2, linear_part(block, family.fc2))
        if stream:
            _fold_norm(part(block, family.norm1), [linear_part(block, path) for path in family.attention_layers])
            _fold_norm(part(block, family.norm2), [linear_part(block, family.fc1)])
    if not stream:
        return
    for path in family.stem_norms:
        norm = optional_part(module, path)
        if norm is not None:
            replace_part(module, path, _writer(norm))
    if not structure.classes:
        replace_part(module, family.classifiers[0], _unchanged(structure.width).to(next(module.parameters())))
    for path in (family.last_norm, *family.tail_norms):
        norm = optional_part(module, path)
        if norm is not None:
            _fold_norm(norm, classifiers(module, family))


def _writer(norm: nn.Module) -> StreamWriter:
    """Return a norm before the blocks with its weight and bias in a linear layer of its own."""
    assert isinstance(norm, nn.LayerNorm) and norm.weight is not None
    linear = nn.Linear(norm.normalized_shape[0], norm.normalized_shape[0]).to(norm.weight)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(linear.in_features))
        linear.bias.zero_()
    _fold_norm(norm, [linear])
    return StreamWriter(norm, linear)


def _unchanged(width: int) -> FeatureMap:
    """Return the feature map that leaves its input as it is."""
    found = FeatureMap(width, width)
    with torch.no_grad():
        found.weight.copy_(torch.eye(width))
        found.bias.zero_()
    return found


def _fold_norm(norm: nn.Module, readers: Iterable[nn.Linear]) -> None:
    """Move the weight and the bias of a norm into the layers that read it. The norm keeps ones and zeros."""
    assert isinstance(norm, nn.LayerNorm) and norm.weight is not None
    with torch.no_grad():
        for reader in readers:
            weight = reader.weight.double()
            if norm.bias is not None:
                _add_bias(reader, weight @ norm.bias.double())
            reader.weight.copy_(weight * norm.weight.double())
        norm.weight.fill_(1)
        if norm.bias is not None:
            norm.bias.zero_()


def _fold_scale(block: nn.Module, path: str, writer: nn.Linear) -> None:
    """Move the layer scale at `path` into the layer before it, and take it out of the block."""
    gamma = getattr(optional_part(block, path), "gamma", None)
    if not isinstance(gamma, Tensor):
        return
    with torch.no_grad():
        writer.weight.copy_(writer.weight.double() * gamma.double().unsqueeze(1))
        if writer.bias is not None:
            writer.bias.copy_(writer.bias.double() * gamma.double())
    replace_part(block, path, nn.Identity())


def _add_bias(layer: nn.Linear, shift: Tensor) -> None:
    """Add `shift` (O,) to the bias of a layer. A layer without a bias gets one."""
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(layer.out_features, dtype=layer.weight.dtype))
    with torch.no_grad():
        layer.bias.copy_(layer.bias.double() + shift)
