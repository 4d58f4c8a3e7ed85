"""Collect the statistics of a network while calibration images run through it.

Networks differ in how the inputs of their layers are observed. A timm network puts hooks on its modules. A network that
was read from its graph reads nodes of the graph. Each network passes its own function, of type `Observe`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from models.statistics.hsic import Dependence, dependence, output_kernel
from models.statistics.moments import Moments
from models.statistics.statistics import BlockStatistics, Inputs, Kind, Statistics
from models.structure import Layer, Structure

DEPENDENCE_IMAGES = 128
"""Number of images for HSIC. MDC also uses one batch of 128 images."""
MOMENT_ROWS = 16384
"""Number of token vectors per layer for the moments: several times the width of the widest layer, at a low cost."""
BATCH = 32
Sides = tuple[Layer, Layer]
"""The two layers of each block whose inputs are observed: side 0 and side 1."""
READERS: Sides = ("proj", "fc2")
"""The layer that reads the heads, and the layer that reads the neurons."""
Observer = Callable[[int, int, Tensor], None]
"""Called as observer(block, side, input) with the input (..., D) of a layer."""
Outputs = Callable[[Tensor], Tensor]


class Observe(Protocol):
    def __call__(self, observer: Observer, images: Tensor, batch: int, sides: Sides) -> None:
        """Run the images through the network, `batch` at a time, and call the observer with the input of each layer."""


def collect(
    structure: Structure,
    images: Tensor,
    outputs: Outputs,
    observe: Observe,
    *,
    kinds: Collection[Kind] = (),
    further: Mapping[Kind, Callable[[], Sequence[Any]]] | None = None,
) -> Statistics:
    """Collect the moments of the inputs of `READERS`, and every other kind of statistics in `kinds`.

    further: kinds that only some networks have, each with a function that returns one value for each block.
    """
    moments = moments_of(structure, images, observe, READERS)
    ways: dict[Kind, Callable[[], Sequence[Any]]] = {
        "dependence": lambda: _dependence(structure, images[:DEPENDENCE_IMAGES], outputs, observe),
        "inputs": lambda: _inputs(structure, images, observe),
        **(further or {}),
    }
    found = {kind: way() for kind, way in ways.items() if kind in kinds}
    blocks = (
        BlockStatistics(projection.statistics(), neurons.statistics(), **{kind: of[i] for kind, of in found.items()})
        for i, (projection, neurons) in enumerate(moments)
    )
    return Statistics(tuple(blocks))


def moments_of(structure: Structure, images: Tensor, observe: Observe, sides: Sides) -> list[tuple[Moments, Moments]]:
    """Return the moments of the inputs of two layers (`sides`) of each block."""
    moments = [(Moments(), Moments()) for _ in structure.blocks]
    draw = torch.Generator().manual_seed(0)

    def record(block: int, side: int, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        share = min(1.0, MOMENT_ROWS / (len(images) * structure.blocks[block].tokens))
        if share < 1:  # random rows, because every n-th row would always take the same few positions of each image
            rows = rows[torch.randperm(len(rows), generator=draw)[: max(1, round(share * len(rows)))]]
        moments[block][side].add(rows)

    observe(record, images, BATCH, sides)
    return moments


def _inputs(structure: Structure, images: Tensor, observe: Observe) -> list[Inputs]:
    moments = moments_of(structure, images, observe, ("qkv", "fc1"))
    return [Inputs(qkv.statistics(), fc1.statistics()) for qkv, fc1 in moments]


def _dependence(structure: Structure, images: Tensor, outputs: Outputs, observe: Observe) -> list[Dependence]:
    answers = output_kernel(outputs(images))
    heads: dict[int, Tensor] = {}
    found: dict[int, Dependence] = {}

    def record(block: int, side: int, x: Tensor) -> None:
        if side == 0:
            count = structure.blocks[block].attention.heads  # type: ignore[union-attr]
            heads[block] = _per_image(x, len(images)).unflatten(-1, (count, -1)).mean(-1)
        else:
            new = dependence(heads.pop(block), _per_image(x, len(images)), answers)
            found[block] = found[block].plus(new) if block in found else new

    observe(record, images, len(images), READERS)
    return [found[block] for block in range(len(structure.blocks))]


def _per_image(x: Tensor, images: int) -> Tensor:
    """Reshape to (images, N, D): the windows of one image are joined along N."""
    return x.reshape(images, -1, x.shape[-1])
