"""Turns a dense network into the same network in rotated bases. Its leading members carry most.

Afterwards an axis is cut by slicing: a plan keeps the first q/k dims and v dims of each head, and the first embedding
dims. The rotated network computes the same as the original, up to rounding.
"""

import torch
from torch import Tensor, nn

from models.families.family import Family, blocks_of, classifiers, linear_part, part
from models.families.stream_layers import stream_writer
from models.rotation.bases import Bases, BlockBases
from models.rotation.fold import fold
from models.rotation.stream_basis import StreamBasis
from models.structure import Structure


def rotate(module: nn.Module, family: Family, structure: Structure, bases: Bases) -> None:
    """Rotate a copy of a dense module, in place."""
    fold(module, family, structure, stream=bases.stream is not None)
    with torch.no_grad():
        for block, found in zip(blocks_of(module, family), bases.blocks, strict=True):
            _rotate_heads(block, family, found)
        if bases.stream is not None:
            _rotate_stream(module, family, bases.stream)


def _rotate_heads(block: nn.Module, family: Family, bases: BlockBases) -> None:
    maps: dict[str, Tensor] = {}
    if bases.qk is not None:
        maps |= {"q": bases.qk.queries, "k": bases.qk.keys}
    if bases.v is not None:
        maps["v"] = bases.v.values
        _map_columns(linear_part(block, family.projection), torch.block_diag(*bases.v.inverse))
    for path, made in family.attention_layers.items():
        layer = linear_part(block, path)
        for place, name in enumerate(made):
            if name in maps:
                _map_heads(layer, place * layer.out_features // len(made), maps[name])


def _rotate_stream(module: nn.Module, family: Family, basis: StreamBasis) -> None:
    written = basis.writer_map
    if (writer := stream_writer(module, family)) is not None:
        _map_rows(writer.linear, slice(None), written)
    else:
        _rotate_embedding(module, family, written)
    for block in blocks_of(module, family):
        for path in (family.projection, family.fc2):
            _map_rows(linear_part(block, path), slice(None), written)
        for path in (*family.attention_layers, family.fc1):
            _map_columns(linear_part(block, path), written.T)
    for head in classifiers(module, family):
        _map_columns(head, written.T)


def _rotate_embedding(module: nn.Module, family: Family, written: Tensor) -> None:
    conv = part(module, family.patch)
    assert isinstance(conv, nn.Conv2d)
    conv.weight.copy_((written @ conv.weight.double().flatten(1)).reshape_as(conv.weight))
    if conv.bias is not None:
        conv.bias.copy_(written @ conv.bias.double())
    for path in family.tables:
        table = getattr(module, path, None)
        if isinstance(table, Tensor):
            table.copy_(table.double() @ written.T)


def _map_heads(layer: nn.Linear, first: int, maps: Tensor) -> None:
    """Map the rows of each head, (H, d, d), from the row `first` on."""
    for head, matrix in enumerate(maps):
        start = first + head * len(matrix)
        _map_rows(layer, slice(start, start + len(matrix)), matrix)


def _map_rows(layer: nn.Linear, rows: slice, matrix: Tensor) -> None:
    """Replace some rows by linear combinations of them, bias included."""
    layer.weight[rows] = (matrix @ layer.weight[rows].double()).to(layer.weight)
    if layer.bias is not None:
        layer.bias[rows] = (matrix @ layer.bias[rows].double()).to(layer.bias)


def _map_columns(layer: nn.Linear, matrix: Tensor) -> None:
    layer.weight.copy_(layer.weight.double() @ matrix)
