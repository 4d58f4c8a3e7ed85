"""Makes smaller layers: detached copies that keep some outputs and inputs of a layer, in a given order."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.families.family import is_present


def take(tensor: Tensor | nn.Module, dim: int, members: Sequence[int]) -> Tensor:
    """Return a detached copy of the given indices (`members`) along one dim."""
    assert isinstance(tensor, Tensor)
    return tensor.detach().index_select(dim, torch.tensor(members, device=tensor.device)).clone()


def narrow_linear(linear: nn.Linear, rows: Sequence[int], columns: Sequence[int]) -> nn.Linear:
    """Return a linear layer with the given outputs (rows) and inputs (columns) of the original, in the given order."""
    small = nn.Linear(len(columns), len(rows), bias=linear.bias is not None, device="meta")
    small.weight = nn.Parameter(take(take(linear.weight, 0, rows), 1, columns))
    if linear.bias is not None:
        small.bias = nn.Parameter(take(linear.bias, 0, rows))
    return small


def narrow_conv(conv: nn.Conv2d, rows: Sequence[int], columns: Sequence[int]) -> nn.Conv2d:
    """Return a convolution without groups with the given outputs (rows) and inputs (columns) of the original."""
    small = copy.deepcopy(conv)
    small.out_channels, small.in_channels = len(rows), len(columns)
    small.weight = nn.Parameter(take(take(conv.weight, 0, rows), 1, columns))
    if conv.bias is not None:
        small.bias = nn.Parameter(take(conv.bias, 0, rows))
    return small


def split_linear(linear: nn.Linear, rows: Sequence[int]) -> list[nn.Linear]:
    """Split a layer into several ones with the same inputs. rows: number of consecutive outputs of each new layer."""
    ends = [sum(rows[: i + 1]) for i in range(len(rows))]
    inputs = range(linear.in_features)
    return [narrow_linear(linear, range(end - n, end), inputs) for n, end in zip(rows, ends, strict=True)]


def narrow_norm(norm: nn.Module, members: Sequence[int]) -> nn.Module:
    """Return a norm over the kept dims. It computes the mean and the variance over these dims only."""
    if not is_present(norm):
        return norm
    small = copy.deepcopy(norm)
    assert isinstance(small, nn.LayerNorm)
    small.normalized_shape = (len(members),)
    small.weight = nn.Parameter(take(small.weight, 0, members))
    if small.bias is not None:
        small.bias = nn.Parameter(take(small.bias, 0, members))
    return small


def narrow_depthwise(conv: nn.Conv2d, channels: Sequence[int]) -> nn.Conv2d:
    """Return a depthwise convolution with the given channels of the original."""
    small = copy.deepcopy(conv)
    small.in_channels = small.out_channels = small.groups = len(channels)
    small.weight = nn.Parameter(take(conv.weight, 0, channels))
    if conv.bias is not None:
        small.bias = nn.Parameter(take(conv.bias, 0, channels))
    return small
