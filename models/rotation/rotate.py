"""Turns a dense network into the same network in rotated bases. Its leading members carry most.

Afterwards an axis is cut by slicing: a plan keeps the first q/k dims and v dims of each head, and the first embedding
dims. The rotated network computes the same as the original, up to rounding.
"""

import torch
from torch import Tensor, nn

from models.families.family import Family, blocks_of, linear_part
from models.families.stream_parts import free_streams
from models.rotation.bases import Bases, BlockBases
from models.rotation.fold import fold
from models.rotation.turn import map_inputs, map_outputs, turn_stream
from models.structure import Structure


def rotate(module: nn.Module, family: Family, structure: Structure, bases: Bases) -> None:
    """Rotate a copy of a dense module, in place."""
    fold(module, family, structure, streams=bool(bases.streams))
    with torch.no_grad():
        for block, found in zip(blocks_of(module, family), bases.blocks, strict=True):
            _rotate_heads(block, family, found)
        for stream, basis in zip(free_streams(module, family) if bases.streams else (), bases.streams, strict=True):
            turn_stream(module, stream, basis.writer_map)


def _rotate_heads(block: nn.Module, family: Family, bases: BlockBases) -> None:
    maps: dict[str, Tensor] = {}
    if bases.qk is not None:
        maps |= {"q": bases.qk.queries, "k": bases.qk.keys}
    if bases.v is not None:
        maps["v"] = bases.v.values
        map_inputs(linear_part(block, family.projection), torch.block_diag(*bases.v.inverse))
    for path, made in family.attention_layers.items():
        layer = linear_part(block, path)
        for place, name in enumerate(made):
            if name in maps:
                _map_heads(layer, place * layer.out_features // len(made), maps[name])


def _map_heads(layer: nn.Linear, first: int, maps: Tensor) -> None:
    """Map the rows of each head, (H, d, d), from the row `first` on."""
    for head, matrix in enumerate(maps):
        start = first + head * len(matrix)
        map_outputs(layer, matrix, slice(start, start + len(matrix)))
