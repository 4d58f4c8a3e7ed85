"""Where the residual stream is read. An embedding dim that no place reads is gone from the whole network.

The sum over all reads of (value * gradient) equals the sum over all writes, because the stream at each read is the sum of
the writes before it; so the reads alone say what a dim is worth.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.families.family import Family, is_present, part


@dataclass(frozen=True)
class Read:
    """A norm (or, where a network ends without one, an identity) over the stream.

    own: whether its output dim j is read as itself. Of a norm inside the stem only the mean and the variance count: its
    output is the stream, which is read later.
    """

    module: nn.Module
    own: bool = True


def stream_reads(model: nn.Module, family: Family) -> list[Read]:
    """In the order of the forward pass."""
    reads = [Read(part(model, path), own=False) for path in family.stem_norms if is_present(part(model, path))]
    for block in part(model, family.blocks).children():
        reads += [Read(part(block, family.norm1)), Read(part(block, family.norm2))]
    ends = [part(model, path) for path in (family.last_norm, *family.tail_norms)]
    present = [end for end in ends if is_present(end)] or ends[:1]
    return reads + [Read(end, own=place == 0) for place, end in enumerate(present)]


def norm_without(norm: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
    """What the norm over the kept dims gives, with zeros for the others. x (..., D), keep (..., D) of ones and zeros."""
    if not isinstance(norm, nn.LayerNorm):
        return x * keep
    count = keep.sum(-1, keepdim=True)
    centred = (x - (x * keep).sum(-1, keepdim=True) / count) * keep
    variance = (centred**2).sum(-1, keepdim=True) / count
    out = centred * torch.rsqrt(variance + norm.eps) * norm.weight
    return out if norm.bias is None else out + norm.bias * keep


def change_without(norm: nn.Module, x: Tensor, gradient: Tensor, own: bool) -> Tensor:
    """How much (sum over a norm's outputs of gradient * output) changes when one dim of its input goes.

    Exact in what the norm does (mean and variance over the dims that are left), first order in what follows. x and the
    gradient at the output: (B, T, D). Returns (B, D), summed over tokens.
    """
    if not isinstance(norm, nn.LayerNorm):
        return -(x * gradient).sum(1) if own else torch.zeros_like(x[:, 0])
    size = x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    less = (size * variance - centred**2 * size / (size - 1)) / (size - 1)
    stretch = torch.sqrt((variance + norm.eps) / (less.clamp(min=0) + norm.eps))
    z = centred * torch.rsqrt(variance + norm.eps)
    weighted = gradient * norm.weight
    others = weighted.sum(-1, keepdim=True) - weighted
    others_z = (weighted * z).sum(-1, keepdim=True) - weighted * z
    change = (stretch - 1) * others_z + stretch * z * others / (size - 1)
    if own:
        output = functional.layer_norm(x, (size,), norm.weight, norm.bias, norm.eps)
        change = change - output * gradient
    return change.sum(1)
