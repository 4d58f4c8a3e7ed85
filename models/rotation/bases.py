"""Finds the bases of a dense network from calibration images (docs/rotation.md)."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn

from models.families.family import Family, blocks_of, linear_part
from models.families.stream_parts import free_streams
from models.rotation.fold import fold
from models.rotation.frequencies import FrequencyBasis
from models.rotation.head_bases import PairBasis, ValueBasis, pair_basis, value_basis
from models.rotation.moments import collect_moments
from models.rotation.stream_basis import StreamBasis, stream_basis
from models.statistics.statistics import from_tensors
from models.structure import RotatedAxis, Structure

ROTATED_AXES: tuple[RotatedAxis, ...] = get_args(RotatedAxis)


@dataclass(frozen=True)
class BlockBases:
    """The bases of the heads of one block. None: this network does not allow it.

    frequencies: what the q/k dims have in the place of `qk`, if rotary positions turn them.
    """

    qk: PairBasis | None = None
    v: ValueBasis | None = None
    frequencies: FrequencyBasis | None = None

    @property
    def qk_energies(self) -> Tensor | None:
        """What the logits lose with each q/k dim or frequency, (H, d); None if q and k stay in their own basis."""
        found = self.qk or self.frequencies
        return None if found is None else found.energies

    def members(self, axis: RotatedAxis, directions: tuple[int, ...]) -> tuple[int, ...]:
        """Return the members of the rotated network that these directions are: frequencies stay where they were."""
        if axis != "qk" or self.frequencies is None:
            return directions
        return tuple(self.frequencies.order[list(directions)].tolist())


@dataclass(frozen=True)
class Bases:
    blocks: tuple[BlockBases, ...]
    streams: tuple[StreamBasis, ...] = ()
    """The bases of the residual streams that allow one. A plain network has one stream, and each stage may
    have its own."""

    @property
    def axes(self) -> tuple[RotatedAxis, ...]:
        """The axes that are rotated."""
        first = self.blocks[0]
        there = {"qk": first.qk_energies is not None, "v": first.v is not None, "embed": bool(self.streams)}
        return tuple(axis for axis in ROTATED_AXES if there[axis])


def refusals(module: nn.Module, family: Family, structure: Structure) -> dict[RotatedAxis, str]:
    """Return the axes that cannot be rotated in this network, each with the reason."""
    found: dict[RotatedAxis, str] = {}
    for axis in ("qk", "v"):
        if axis in structure.fixed:
            found[axis] = f"the heads of {family.title} keep all of their dims"
    if any(block.attention and block.attention.qk_norm != "none" for block in structure.blocks):
        found.setdefault("qk", "the model normalises q and k")
    if not free_streams(module, family):
        found["embed"] = "; ".join(dict.fromkeys(fixed_stages(module, family).values()))
    return found


def fixed_stages(module: nn.Module, family: Family) -> dict[str, str]:
    """Return the stages whose width allows no basis, each with the reason."""
    return {stream.stage: stream.fixed for stream in family.streams(module, family) if stream.fixed}


def images_needed(structure: Structure, axes: Sequence[RotatedAxis]) -> int:
    """Return the smallest number of calibration images for bases of these axes: one token for each dim."""
    needed = 1
    for block in structure.blocks:
        assert block.attention is not None
        sizes = {"qk": block.attention.qk_dim, "v": block.attention.v_dim, "embed": block.width}
        needed = max([needed, *(-(-sizes[axis] // block.tokens) for axis in axes)])
    return needed


def find_bases(module: nn.Module, family: Family, structure: Structure, run: Callable[[nn.Module], object]) -> Bases:
    """Return the bases of all axes that the network allows.

    run: runs the calibration images through the module that it is given.
    """
    axes = set(ROTATED_AXES) - set(refusals(module, family, structure))
    folded = copy.deepcopy(module)
    fold(folded, family, structure, streams="embed" in axes)
    streams = free_streams(folded, family) if "embed" in axes else []
    moments = collect_moments(folded, family, structure, lambda: run(folded), streams=streams)
    found = []
    for block, seen in zip(blocks_of(folded, family), moments.blocks, strict=True):
        queries, keys = seen.queries.value, seen.keys.value
        covariance, projection = seen.output_covariance(len(queries)), linear_part(block, family.projection)
        found.append(
            BlockBases(
                pair_basis(queries, keys) if "qk" in axes else None,
                value_basis(covariance, projection.weight.detach()) if "v" in axes else None,
            )
        )
    return Bases(tuple(found), tuple(stream_basis(one) for one in moments.streams))


def bases_from(flat: dict[str, Tensor]) -> Bases:
    """Build bases again from the flat tensors in which they were stored.

    Older jobs have stored the only stream under another name.
    """
    renamed = {re.sub(r"^stream\.", "streams.0.", name): tensor for name, tensor in flat.items()}
    return from_tensors(Bases, renamed)
