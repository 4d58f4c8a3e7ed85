"""Complex factors of the frequencies of rotary positions in a graph (models/rotation/frequencies.py)."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from models.graph.head_maps import map_dims
from models.graph.tracing.atoms import Atom
from models.graph.tracing.inner_dims import InnerDims, InsideHeads
from models.graph.tracing.sublayers import GraphBlock
from models.graph.tracing.trace import Traced
from models.rotation.bases import Bases
from models.rotation.frequencies import as_maps

IMAGES = 2
"""Number of random images on which two graphs are compared."""
CLOSE = 1e-3
"""Largest difference of the outputs of two graphs that compute the same, relative to the largest output."""


def make_up(
    traced: Traced,
    blocks: Sequence[GraphBlock],
    inside: Sequence[InsideHeads],
    bases: Bases,
    *,
    kept: Mapping[Atom, Sequence[int]],
) -> None:
    """Let the frequencies that stay make up for those that go, in place.

    traced: with a graph that was cut out, with these members `kept`. There are no factors if other frequencies than the
    most important ones stay.
    """
    for block, dims, found in zip(blocks, inside, bases.blocks, strict=True):
        if found.frequencies is None or dims.qk is None:
            continue
        rank = len(kept[dims.qk.atom])
        if list(kept[dims.qk.atom]) == found.frequencies.order[:rank].tolist():
            factors = found.frequencies.of_rank(rank)[list(kept[block.heads.atom])]
            multiply_frequencies(traced, block, dims.qk, [factors], kept=kept)


def multiply_frequencies(
    traced: Traced, block: GraphBlock, dims: InnerDims, factors: Sequence[Tensor], *, kept: Mapping[Atom, Sequence[int]]
) -> None:
    """Multiply the frequencies of q, or those of q and k, by complex factors, in place.

    traced: with the graph whose weights change. It may be one that was cut out, with these members `kept`.
    factors: (H, n, 2) for q, and perhaps for k, for the heads and the frequencies that are kept.
    """
    for maker, biases, numbers in zip(dims.makers, dims.biases, factors, strict=False):
        for node in (maker.args[1], *biases):
            map_dims(traced, node, block.heads.atom, dims.atoms, maps=as_maps(numbers), kept=kept)


def commute(traced: Traced, blocks: Sequence[GraphBlock], found: Sequence[InnerDims | None]) -> bool:
    """Return whether complex factors pass through all that the graph does to the frequencies of q and k.

    They do if q times c, and k divided by the conjugate of c, give the same outputs for random c.
    """
    if all(dims is None or dims.pair is None for dims in found):
        return True
    draw = torch.Generator().manual_seed(0)
    other = dataclasses.replace(traced, graph=copy.deepcopy(traced.graph))
    for block, dims in zip(blocks, found, strict=True):
        if dims is not None and dims.pair is not None:
            size = (block.heads.atom.size, dims.atom.size)
            turns = torch.polar(0.5 + torch.rand(size, generator=draw), 6.28 * torch.rand(size, generator=draw))
            factors = [torch.view_as_real(numbers) for numbers in (turns, 1 / turns.conj())]
            multiply_frequencies(other, block, dims, factors, kept={})
    images = torch.randn(IMAGES, *traced.image, generator=draw, dtype=_dtype(traced.graph))
    with torch.inference_mode():
        one, two = (_first(graph(images)) for graph in (traced.graph, other.graph))
    return bool((one - two).abs().max() <= CLOSE * one.abs().max())


def _dtype(graph: GraphModule) -> torch.dtype:
    return next(graph.parameters()).dtype


def _first(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]
