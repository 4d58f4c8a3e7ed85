"""Folds what stands between the residual stream and its linear layers into these layers, so that a basis is free.

The weight and bias of a norm go into the layers that read it; layer scales go into the layers that write before them.
The network computes the same as before, with fewer operations: a folded layer scale is gone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.families.family import Family, block_lists, blocks_of, linear_part, optional_part, part, replace_part
from models.families.module_trace import trace
from models.families.stream import Reader, Stream
from models.families.stream_layers import FeatureMap, MapWriter, OffsetConv, StreamWriter
from models.families.stream_parts import free_streams
from models.structure import Structure


def fold(module: nn.Module, family: Family, structure: Structure, *, streams: bool) -> None:
    """Fold the layer scales of a dense module, in place. streams: fold the norms over its free streams too.

    If the norms are folded, a model without a classifier gets a `FeatureMap` in its place. A norm in front of a stream
    becomes a `StreamWriter`, a grouped convolution there becomes a `MapWriter`, and a padded convolution that reads a
    stream becomes an `OffsetConv`.
    """
    for block in blocks_of(module, family):
        _fold_scale(block, family.layer_scale1, linear_part(block, family.projection))
        _fold_scale(block, family.layer_scale2, linear_part(block, family.fc2))
    found = free_streams(module, family) if streams else []
    if found and not structure.classes and found[-1].stage == block_lists(module, family)[-1]:
        width = structure.stages[-1].blocks[0].width
        replace_part(module, family.classifiers[0], _unchanged(width).to(next(module.parameters())))
        found = free_streams(module, family)
    for stream in found:
        _fold_norms(module, stream, structure.image)
        for path in stream.starts:
            replace_part(module, path, _writer(part(module, path)))
    for block in blocks_of(module, family) if found else ():
        _give_all_a_bias([linear_part(block, path) for path in family.attention_layers])


def _give_all_a_bias(layers: Sequence[nn.Linear]) -> None:
    """Give each layer a bias if one of them has one, because the layers of an attention are alike in this."""
    if any(layer.bias is not None for layer in layers):
        for layer in layers:
            _add_bias(layer, torch.zeros(layer.out_features, dtype=torch.float64))


def _fold_norms(module: nn.Module, stream: Stream, image: tuple[int, int, int]) -> None:
    padded = [path for path in stream.layers if _is_padded(part(module, path))]
    grids = {call.path: call.inputs[-2:] for call in trace(module, image, set())} if padded else {}
    for reader in stream.readers:
        _fold_norm(module, reader, grids)


def _is_padded(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.padding not in ("valid", (0, 0))


def _writer(start: nn.Module) -> StreamWriter | MapWriter:
    """Return what is in front of a stream, with a linear layer behind it. This layer takes up the affine of a norm."""
    if isinstance(start, nn.Conv2d):
        linear = nn.Conv2d(start.out_channels, start.out_channels, 1, bias=False).to(start.weight)
        with torch.no_grad():
            linear.weight.copy_(torch.eye(start.out_channels)[:, :, None, None])
        return MapWriter(start, linear)
    assert isinstance(start, nn.LayerNorm) and start.weight is not None
    writer = StreamWriter(start, _unchanged(start.normalized_shape[0], nn.Linear).to(start.weight))
    _fold_norm(writer, Reader("norm", ("linear",)), {})
    return writer


def _unchanged(width: int, kind: type[nn.Linear] = FeatureMap) -> nn.Linear:
    """Return the linear layer that leaves its input as it is."""
    found = kind(width, width)
    with torch.no_grad():
        found.weight.copy_(torch.eye(width))
        found.bias.zero_()
    return found


def _fold_norm(module: nn.Module, reader: Reader, grids: dict[str, tuple[int, ...]]) -> None:
    """Move the weight and the bias of a norm into the layers that read it. The norm keeps ones and zeros.

    grids: height and width of what each padded convolution reads.
    """
    norm = part(module, reader.norm)
    assert isinstance(norm, nn.LayerNorm) and norm.weight is not None
    with torch.no_grad():
        for path in reader.layers:
            layer = part(module, path)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            if norm.bias is not None:
                if path in grids and isinstance(layer, nn.Conv2d) and _is_padded(layer):
                    replace_part(module, path, _with_offset(layer, norm.bias.double(), grids[path]))
                else:
                    _add_bias(
                        layer, layer.weight.double().reshape(*layer.weight.shape[:2], -1).sum(-1) @ norm.bias.double()
                    )
            weight = norm.weight.double().reshape(-1, *[1] * (layer.weight.dim() - 2))
            layer.weight.copy_(layer.weight.double() * weight)
        norm.weight.fill_(1)
        if norm.bias is not None:
            norm.bias.zero_()


def _with_offset(conv: nn.Conv2d, constant: Tensor, grid: Sequence[int]) -> OffsetConv:
    """Return the convolution of x + constant. constant: (C,), float64. grid: height and width of x."""
    full = constant.reshape(1, -1, 1, 1).expand(1, -1, *grid)
    weight = conv.weight.double()
    offset = functional.conv2d(full, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return OffsetConv(conv, offset.to(conv.weight))


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


def _add_bias(layer: nn.Linear | nn.Conv2d, shift: Tensor) -> None:
    """Add `shift` (O,) to the bias of a layer. A layer without a bias gets one."""
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight), dtype=layer.weight.dtype))
    with torch.no_grad():
        layer.bias.copy_(layer.bias.double() + shift)
