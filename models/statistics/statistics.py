"""Statistics of the dense network on calibration images, recorded once.

Rankings and recovery read these statistics and never modules, so a network that is not in PyTorch can provide them too.
Moments are always recorded. The other kinds are recorded only if a criterion needs them.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from models.statistics.attention_statistics import AttentionStatistics
from models.statistics.gates import Gates
from models.statistics.hsic import Dependence
from models.statistics.member_scores import MemberScores, StreamScores
from models.statistics.moments import InputStatistics

Kind = Literal["dependence", "attention", "taylor", "fisher", "deletion", "gates", "inputs"]
"""The kinds of statistics besides the moments. Each names a field of `BlockStatistics`, and some of `Statistics`
too."""


@dataclass(frozen=True)
class Inputs:
    """Moments of the inputs of q/k/v and of fc1, after the norms."""

    qkv: InputStatistics
    fc1: InputStatistics


@dataclass(frozen=True)
class BlockStatistics:
    """Statistics of one block.

    projection, neurons: moments of the inputs of the attention's projection and of fc2.
    """

    projection: InputStatistics
    neurons: InputStatistics
    dependence: Dependence | None = None
    attention: AttentionStatistics | None = None
    taylor: MemberScores | None = None
    fisher: MemberScores | None = None
    deletion: MemberScores | None = None
    gates: Gates | None = None
    inputs: Inputs | None = None


@dataclass(frozen=True)
class Statistics:
    blocks: tuple[BlockStatistics, ...]
    taylor: StreamScores | None = None
    fisher: StreamScores | None = None
    deletion: StreamScores | None = None


def to_tensors(record: object) -> dict[str, Tensor]:
    """Return the tensors of a record (a dataclass of tensors, tuples and records) under flat names.

    They can be stored in a safetensors file.
    """
    return {name: tensor.contiguous() for name, tensor in _flat("", record).items()}


R = typing.TypeVar("R")


def from_tensors(kind: type[R], flat: dict[str, Tensor]) -> R:
    """Build a record of this kind again from its flat tensors."""
    return typing.cast(R, _built(kind, "", flat))


def _flat(prefix: str, value: Any) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {prefix: value}
    if isinstance(value, tuple):
        named = {str(i): item for i, item in enumerate(value)}
    elif value is None:
        return {}
    else:
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    flat: dict[str, Tensor] = {}
    for name, item in named.items():
        flat |= _flat(f"{prefix}.{name}" if prefix else name, item)
    return flat


def _built(kind: Any, prefix: str, flat: dict[str, Tensor]) -> Any:
    """Build a value from flat tensors, the inverse of `_flat`. An optional part without tensors becomes None."""
    if kind is Tensor:
        return flat[prefix]
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [arm for arm in typing.get_args(kind) if arm is not type(None)]
        there = prefix in flat or any(name.startswith(prefix + ".") for name in flat)
        return _built(inner, prefix, flat) if there else None
    if origin is tuple:
        places = {int(name[len(prefix) + 1 :].split(".")[0]) for name in flat if name.startswith(prefix + ".")}
        return tuple(_built(typing.get_args(kind)[0], f"{prefix}.{i}", flat) for i in range(len(places)))
    hints = typing.get_type_hints(kind)
    join = prefix + "." if prefix else ""
    return kind(
        **{field.name: _built(hints[field.name], join + field.name, flat) for field in dataclasses.fields(kind)}
    )
