"""A second rotation, inside the members that stay, which spreads their energy evenly. It is for int8.

The first members of a principal basis carry most, and int8 gives one range to all values of a tensor. So the strong
members take the range, and the weak ones are rounded away. After pruning, any rotation inside the kept space is free:
of the q/k dims and of the v dims of a head, and of the width if it leaves (1, ..., 1) in its place, because LayerNorm
takes the mean of the coordinates away. QuaRot (arXiv 2404.00456) spreads the energy of language models in the same way.
"""

import dataclasses

import torch
from torch import Tensor, nn

from models.families.family import Family, linear_part
from models.families.stream import Reader
from models.families.stream_parts import plain_ends
from models.pruning.pruned_blocks import PrunedAttention, row_of_blocks
from models.rotation.stream_basis import centred_layout
from models.rotation.turn import map_inputs, map_outputs, turn_stream


def spreading(size: int, seed: int = 0) -> Tensor:
    """Return an orthogonal matrix (size, size), float64, that mixes every member into every other.

    It is a Hadamard matrix with random signs if the size is a power of 2, and a random orthogonal matrix otherwise.
    """
    draw = torch.Generator().manual_seed(seed)
    if size & (size - 1):
        turned: Tensor = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64)).Q
        return turned
    signs = torch.randint(2, (size,), generator=draw).double() * 2 - 1
    found: Tensor = torch.ones(1, 1, dtype=torch.float64)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    signed: Tensor = found * signs / size**0.5
    return signed


def spreading_width(size: int, seed: int = 0) -> Tensor:
    """Return an orthogonal matrix (size, size) that maps (1, ..., 1) to itself, float64."""
    layout = centred_layout(size)
    return layout @ spreading(size - 1, seed) @ layout.T + 1 / size


def can_spread_width(module: nn.Module) -> bool:
    """Return whether all norms of a pruned network treat their coordinates alike, as in a rotated stream."""
    norms = [norm for block in row_of_blocks(module).blocks() for norm in (block.norm1, block.norm2)]
    return all(norm is None or _is_even(norm) for norm in norms)


def _is_even(norm: nn.Module) -> bool:
    if not isinstance(norm, nn.LayerNorm):
        return False
    weight, bias = norm.weight, norm.bias
    return bool((weight == weight[0]).all()) and (bias is None or not bool(bias.any()))


def spread(module: nn.Module, family: Family, *, heads: bool, width: bool) -> None:
    """Spread the energy of a pruned plain network, in place. It computes the same, up to rounding.

    heads: the dims inside the heads. width: the embedding dims, which must be in a rotated basis.
    """
    with torch.no_grad():
        for block in row_of_blocks(module).blocks():
            if heads and block.attention is not None:
                _spread_heads(block.attention)
        if width:
            _spread_width(module, family)


def _spread_heads(attention: PrunedAttention) -> None:
    count, qk, v = attention.heads, attention.qk_dim, attention.v_dim
    pairs, values = (torch.block_diag(*[spreading(size)] * count) for size in (qk, v))
    map_outputs(attention.qkv, torch.block_diag(pairs, pairs, values))
    map_inputs(attention.projection, values.T)


def _spread_width(module: nn.Module, family: Family) -> None:
    ends = plain_ends(module, family)
    writers: list[str] = []
    readers: list[Reader] = []
    for place, block in enumerate(row_of_blocks(module).blocks()):
        here = f"{ends.stage}.{place}."
        if block.attention is not None:
            writers.append(f"{here}attention.projection")
            readers.append(Reader(f"{here}norm1", (f"{here}attention.qkv",)))
        if block.mlp is not None:
            writers.append(f"{here}mlp.fc2")
            readers.append(Reader(f"{here}norm2", (f"{here}mlp.fc1",)))
    stream = dataclasses.replace(ends, writers=(*ends.writers, *writers), readers=(*readers, *ends.readers))
    width = linear_part(module, writers[0]).out_features
    turn_stream(module, stream, spreading_width(width))
