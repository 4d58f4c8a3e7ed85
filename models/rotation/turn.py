"""Turns the residual stream of a plain network: everything that writes to it, and everything that reads it."""

from collections.abc import Iterable

from torch import Tensor, nn

from models.families.family import Family, classifiers, part
from models.families.stream_layers import stream_writer


def turn_stream(
    module: nn.Module, family: Family, matrix: Tensor, *, writers: Iterable[nn.Linear], readers: Iterable[nn.Linear]
) -> None:
    """Let the stream hold matrix x in the place of x, in place.

    matrix: (D, D), float64; its transpose gives the readers back what they read before.
    writers, readers: the layers of the blocks. What stands before and behind the blocks is turned too.
    """
    if (writer := stream_writer(module, family)) is not None:
        map_outputs(writer.linear, matrix)
    else:
        map_outputs(part(module, family.patch), matrix)
        for table in (getattr(module, path, None) for path in family.tables):
            if isinstance(table, Tensor):
                table.copy_(table.double() @ matrix.T)
    for layer in writers:
        map_outputs(layer, matrix)
    for layer in (*readers, *classifiers(module, family)):
        map_inputs(layer, matrix.T)


def map_outputs(layer: nn.Module, matrix: Tensor, rows: slice = slice(None)) -> None:
    """Replace some outputs y of a layer by matrix y, in place, bias included."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    old = layer.weight[rows]
    layer.weight[rows] = (matrix @ old.double().flatten(1)).reshape_as(old).to(layer.weight)
    if layer.bias is not None:
        layer.bias[rows] = (matrix @ layer.bias[rows].double()).to(layer.bias)


def map_inputs(layer: nn.Linear, matrix: Tensor) -> None:
    """Multiply the weight of a layer by a matrix from the right, in place."""
    layer.weight.copy_(layer.weight.double() @ matrix)
