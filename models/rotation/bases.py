"""Finds the bases of a dense network from calibration images (docs/rotation.md)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn

from models.families.family import Family, blocks_of, is_present, linear_part, optional_part
from models.rotation.fold import fold
from models.rotation.frequencies import FrequencyBasis
from models.rotation.head_bases import PairBasis, ValueBasis, pair_basis, value_basis
from models.rotation.moments import collect_moments
from models.rotation.stream_basis import StreamBasis, stream_basis
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
    stream: StreamBasis | None = None

    @property
    def axes(self) -> tuple[RotatedAxis, ...]:
        """The axes that are rotated."""
        first = self.blocks[0]
        there = {"qk": first.qk_energies is not None, "v": first.v is not None, "embed": self.stream is not None}
        return tuple(axis for axis in ROTATED_AXES if there[axis])


def refusals(module: nn.Module, family: Family, structure: Structure) -> dict[RotatedAxis, str]:
    """Return the axes that cannot be rotated in this network, each with the reason."""
    found: dict[RotatedAxis, str] = {}
    for axis in ("qk", "v"):
        if axis in structure.fixed:
            found[axis] = f"the heads of {family.title} keep all of their dims"
    if any(block.attention and block.attention.qk_norm != "none" for block in structure.blocks):
        found.setdefault("qk", "the model normalises q and k")
    if "embed" in structure.fixed:
        found["embed"] = "the embedding width is fixed"
    elif len(last_norms(module, family)) != 1:
        found["embed"] = "the model has no norm, or two norms, after its blocks"
    return found


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
    fold(folded, family, structure, stream="embed" in axes)
    moments = collect_moments(folded, family, structure, lambda: run(folded), stream="embed" in axes)
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
    return Bases(tuple(found), None if moments.stream is None else stream_basis(moments.stream))


def last_norms(module: nn.Module, family: Family) -> list[str]:
    """Return the paths of the norms between the blocks and the classifier."""
    paths = (family.last_norm, *family.tail_norms)
    return [path for path in paths if path and is_present(optional_part(module, path))]
