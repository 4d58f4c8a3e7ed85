"""What spaces share: how far each dimension has given way along a direction, and the directions to begin with."""

from collections.abc import Sequence

import numpy as np

from search.ranking import Array

STARTS: tuple[dict[str, float], ...] = (
    {"heads": 1.0, "qk": 1.0, "v": 1.0, "neurons": 1.0, "tokens": 1.0, "embed": 1.0, "halves": 0.5},
    {"neurons": 1.0},
    {"neurons": 1.0, "qk": 0.5, "v": 0.5},
    {"tokens": 1.0, "neurons": 0.5},
    {"tokens": 1.0},
    {"heads": 1.0, "neurons": 0.5, "tokens": 0.5},
    {"embed": 1.0},
    {"halves": 1.0},
)
"""How eagerly each axis gives at the start of a search: all alike, then what usually costs least by itself."""


def amounts(direction: Sequence[float], t: float) -> Array:
    """Shares in [0, 1] of what each dimension can give: none at t = 0, x over its largest at t = 1, all at t = 2:
    a_i(t) = t x_i / max x for t <= 1, max(x_i / max x, t - 1) above."""
    eager = np.asarray(direction, dtype=float)
    eager = eager / max(eager.max(), 1e-9)
    return np.asarray(eager * t if t <= 1 else np.maximum(eager, t - 1))


def analytic_starts(axes: Sequence[str]) -> list[list[float]]:
    """`STARTS` for dimensions of these axes; those that touch none of them, and repetitions, left out."""
    starts = [[eager.get(axis, 0.0) for axis in axes] for eager in STARTS]
    return [start for i, start in enumerate(starts) if any(start) and start not in starts[:i]]
