"""The places where the residual stream is read. An embedding dim that no place reads is removed from the network.

The sum over all reads of (value * gradient) equals the sum over all writes, because the stream at each read is the sum
of the earlier writes. So the reads are sufficient to score a dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.families.family import Family, is_present, part
from models.families.stream_layers import stream_writer


@dataclass(frozen=True)
class Read:
    """A norm over the residual stream, or an identity if the network ends without a norm.

    own: whether output dim j of the norm counts as a read of dim j. It is False for a norm inside the stem: its output
        is the stream itself, which is read later. So only the effect of a dim on mean and variance counts there.
    """

    module: nn.Module
    own: bool = True


def stream_reads(model: nn.Module, family: Family) -> list[Read]:
    """Return all reads of the residual stream, in the order of the forward pass."""
    stem = family.stem_norms if stream_writer(model, family) is None else ()
    reads = [Read(part(model, path), own=False) for path in stem if is_present(part(model, path))]
    for block in part(model, family.blocks).children():
        reads += [Read(part(block, family.norm1)), Read(part(block, family.norm2))]
    ends = [part(model, path) for path in (family.last_norm, *family.tail_norms)]
    present = [end for end in ends if is_present(end)] or ends[:1]
    return reads + [Read(end, own=place == 0) for place, end in enumerate(present)]


def norm_without(norm: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
    """Compute the norm over the kept dims only. The output is zero in the other dims.

    x: (..., D). keep: (..., D), ones and zeros.
    """
    if not isinstance(norm, nn.LayerNorm):
        return x * keep
    count = keep.sum(-1, keepdim=True)
    centred = (x - (x * keep).sum(-1, keepdim=True) / count) * keep
    variance = (centred**2).sum(-1, keepdim=True) / count
    out = centred * torch.rsqrt(variance + norm.eps) * norm.weight
    return out if norm.bias is None else out + norm.bias * keep


def change_without(norm: nn.Module, x: Tensor, gradient: Tensor, own: bool) -> Tensor:
    """Return the change of (sum over the outputs of a norm of gradient * output) when one dim of its input is removed.

    The change is exact for the norm itself, whose mean and variance are computed over the dims that stay. It is a
    first-order estimate for the later layers.

    x, gradient: (B, T, D), the input of the norm and the gradient at its output. Return (B, D), summed over tokens.
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
