"""What spaces share: how far each dimension has given way along a direction, and the directions to begin with."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search.ranking import Array

RELUCTANT = frozenset({"embed", "halves"})
"""Axes that cost every layer or a whole one: below `RELUCTANCE` of their dimension they give nothing at all."""
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
"""How eagerly each axis gives at the start of a search: all alike, then what usually costs least by itself."""


def amounts(direction: Sequence[float], t: float, axes: Sequence[str]) -> Array:
    """Shares in [0, 1] of what each dimension can give: none at t = 0, e over its largest at t = 1, all at t = 2:
    a_i(t) = t e_i / max e for t <= 1, max(e_i / max e, t - 1) above, with e_i = x_i, of `RELUCTANT` what is
    above `RELUCTANCE`, stretched to [0, 1]."""
    eager = _eager(np.asarray(direction, dtype=float), axes)
    return np.asarray(eager * t if t <= 1 else np.maximum(eager, t - 1))


def canonical(points: Array, axes: Sequence[str]) -> Array:
    """The point (n, d) that stands for all that `amounts` takes alike; columns beyond `axes` stay as they are.

    A Gaussian process then learns from a trial what it says about every multiple of its direction.
    """
    found = np.array(points, dtype=float)
    eager = _eager(found[:, : len(axes)], axes)
    reluctant = _reluctant(axes)
    found[:, : len(axes)] = np.where(reluctant & (eager > 0), eager * (1 - RELUCTANCE) + RELUCTANCE, eager)
    return found


def _eager(points: Array, axes: Sequence[str]) -> Array:
    """e over its largest, (..., d)."""
    eager = np.where(_reluctant(axes), np.maximum(0, points - RELUCTANCE) / (1 - RELUCTANCE), points)
    return np.asarray(eager / np.maximum(eager.max(-1, keepdims=True), 1e-9))


def _reluctant(axes: Sequence[str]) -> npt.NDArray[np.bool_]:
    return np.array([axis in RELUCTANT for axis in axes])


def analytic_starts(axes: Sequence[str]) -> list[list[float]]:
    """`STARTS` for dimensions of these axes; those that touch none of them, and repetitions, left out."""
    starts = [[eager.get(axis, 0.0) for axis in axes] for eager in STARTS]
    return [start for i, start in enumerate(starts) if any(start) and start not in starts[:i]]
