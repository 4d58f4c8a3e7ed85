"""Turns a residual stream: everything that writes to it, and everything that reads it."""

import torch
from torch import Tensor, nn

from models.families.family import part
from models.families.stream import Stream


def turn_stream(module: nn.Module, stream: Stream, matrix: Tensor) -> None:
    """Let the stream hold matrix x in the place of x, in place. Its norms must be folded.

    matrix: (D, D), float64; its transpose gives the readers back what they read before.
    """
    for path in stream.writers:
        map_outputs(part(module, path), matrix)
    for path in stream.tables:
        table = module.get_parameter(path)
        table.copy_(table.double() @ matrix.T)
    for path in stream.layers:
        map_inputs(part(module, path), matrix.T)


def map_outputs(layer: nn.Module, matrix: Tensor, rows: slice = slice(None)) -> None:
    """Replace some outputs y of a layer by matrix y, in place, bias included."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    old = layer.weight[rows]
    layer.weight[rows] = (matrix @ old.double().flatten(1)).reshape_as(old).to(layer.weight)
    if layer.bias is not None:
        layer.bias[rows] = (matrix @ layer.bias[rows].double()).to(layer.bias)


def map_inputs(layer: nn.Module, matrix: Tensor) -> None:
    """Multiply the weight of a layer by a matrix from the right, in place."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    layer.weight.copy_(torch.einsum("oi...,ij->oj...", layer.weight.double(), matrix))
