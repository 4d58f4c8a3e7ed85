"""Shared by the spaces: how far each dimension is cut along a direction, and the first directions of a search."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search.ranking import Array

RELUCTANT = frozenset({"embed", "halves"})
"""Axes whose cut affects every layer or removes whole sublayers. Below the coordinate `RELUCTANCE` they are not cut."""
RELUCTANCE = 0.75
STARTS: tuple[dict[str, float], ...] = (
    {"heads": 1.0, "qk": 1.0, "v": 1.0, "neurons": 1.0, "tokens": 1.0},
    {"neurons": 1.0},
    {"neurons": 1.0, "tokens": 0.7, "v": 0.6, "qk": 0.2},
    {"tokens": 1.0, "neurons": 0.5},
    {"tokens": 1.0},
    {"heads": 1.0, "neurons": 0.5, "tokens": 0.5},
    {"heads": 1.0, "qk": 1.0, "v": 1.0, "neurons": 1.0, "tokens": 1.0, "embed": 1.0, "halves": 0.875},
    {"embed": 1.0},
    {"halves": 1.0},
)
"""How much each axis is cut in the first directions: all axes alike, then what usually costs least by itself."""


ROTATED_STARTS: tuple[dict[str, float], ...] = (
    {"qk": 1.0, "v": 0.8, "neurons": 0.6, "rotated_embed": 0.35, "tokens": 0.35, "neurons_mix": 0.5},
    {"qk": 0.8, "v": 0.4, "neurons": 0.8, "tokens": 0.45, "neurons_mix": 0.5},
    {"qk": 1.0, "v": 0.8, "neurons": 0.8, "rotated_embed": 0.6},
    {"qk": 1.0, "v": 0.8, "neurons": 0.6, "rotated_embed": 0.2, "tokens": 0.5, "neurons_mix": 0.5},
)
"""The first directions of a network in rotated bases, before those in `STARTS`."""
MIXES = {"heads_mix": 0.0, "neurons_mix": 1.0}
"""The mixes of a start that names none."""


def amounts(direction: Sequence[float], t: float, axes: Sequence[str]) -> Array:
    """How far each dimension is cut, as a share in [0, 1] of what can be cut.

    It is 0 at t = 0, e / max e at t = 1, and 1 at t = 2:
    a_i(t) = t e_i / max e for t <= 1, max(e_i / max e, t - 1) above. e_i = x_i; for the axes in `RELUCTANT`, e_i is the
    part of x_i above `RELUCTANCE`, stretched to [0, 1].
    """
    eager = _eager(np.asarray(direction, dtype=float), axes)
    return np.asarray(eager * t if t <= 1 else np.maximum(eager, t - 1))


def canonical(points: Array, axes: Sequence[str]) -> Array:
    """Replace each point (n, d) by the one that represents all points that `amounts` treats alike. Columns beyond
    `axes` stay as they are.

    So a Gaussian process learns from one trial about all multiples of its direction.
    """
    found = np.array(points, dtype=float)
    eager = _eager(found[:, : len(axes)], axes)
    reluctant = _reluctant(axes)
    found[:, : len(axes)] = np.where(reluctant & (eager > 0), eager * (1 - RELUCTANCE) + RELUCTANCE, eager)
    return found


def _eager(points: Array, axes: Sequence[str]) -> Array:
    """(..., d): e / max e, as in `amounts`."""
    eager = np.where(_reluctant(axes), np.maximum(0, points - RELUCTANCE) / (1 - RELUCTANCE), points)
    return np.asarray(eager / np.maximum(eager.max(-1, keepdims=True), 1e-9))


def _reluctant(axes: Sequence[str]) -> npt.NDArray[np.bool_]:
    return np.array([axis in RELUCTANT for axis in axes])


def analytic_starts(axes: Sequence[str], mixes: Sequence[str] = (), rotated: bool = False) -> list[list[float]]:
    """`STARTS` for dimensions of these axes, without repetitions and without directions that cut none of the axes.

    mixes: names of the dimensions behind those of the axes. rotated: whether `ROTATED_STARTS` come first.
    "rotated_embed" among the axes is an embedding width in a rotated basis.
    """
    known = (*ROTATED_STARTS, *STARTS) if rotated else STARTS
    cuts = [start for start in known if any(start.get(axis) for axis in axes)]
    starts = [[start.get(a, 0.0) for a in axes] + [start.get(mix, MIXES[mix]) for mix in mixes] for start in cuts]
    return [start for i, start in enumerate(starts) if start not in starts[:i]]
