"""Propose where to look next: expected improvement under a Gaussian process, with scikit-optimize.

Scores are maximised. The process is fitted from the trials again for each proposal, so a search can resume from its
stored trials alone.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from skopt.acquisition import gaussian_ei
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern
from threadpoolctl import threadpool_limits

from search.ranking import Array

CANDIDATES, NEAR, NEAR_FIRST = 1000, 400, 20
NEAR_SPREADS = (0.2, 0.1, 0.05)
REACH = 1.0
Canonical = Callable[[Array], Array]
"""(n, d) -> (n, d): replaces each point by the one that represents all points with the same meaning."""
Proposal = Callable[[Sequence[Sequence[float]], Sequence[float], int, int, Canonical], list[list[float]]]
"""(points, their scores, dimensions, seed, canonical) -> points to try, best first. If there are more points than
scores, the last points are still being evaluated."""


def as_it_is(points: Array) -> Array:
    return points


def by_expected_improvement(  # noqa: PLR0917  called with a tuple of its arguments
    points: Sequence[Sequence[float]],
    scores: Sequence[float],
    dimensions: int,
    seed: int,
    canonical: Canonical = as_it_is,
) -> list[list[float]]:
    """Candidates in [0, 1]^d, sorted by falling expected improvement (EI) over the best score.

    Some candidates are uniform, others lie near the best points, because in many dimensions plain EI drifts away from
    both. Every second proposal tries the candidates near the best points first. Otherwise all late proposals would go
    to regions that are unexplored because nothing there is good.

    A point that has no score yet is treated as if it had the best score, so that no improvement is expected there. This
    is the constant liar (Ginsbourger, Le Riche and Carraro 2010).
    """
    random = np.random.default_rng(seed)
    x, y = canonical(np.asarray(points, dtype=float)), standardised(np.asarray(scores, dtype=float))
    known = x[np.argsort(-y)[:3]] if len(y) else x
    spread = np.vstack([random.random((CANDIDATES, dimensions)), _near(known, random)])
    y = np.append(y, np.full(len(x) - len(y), y.max() if len(y) else 0.0))
    candidates = canonical(spread)
    with warnings.catch_warnings(), threadpool_limits(1):  # the matrices are small: more threads slow it down
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound means no influence
        process = _process(dimensions, seed).fit(x, -y)  # scikit-optimize minimises
    improvement = gaussian_ei(candidates, process, y_opt=float((-y).min()), xi=0.01)
    order = np.argsort(-improvement, kind="stable")
    if len(points) % 2:
        first = order[order >= CANDIDATES][:NEAR_FIRST]  # only a few: they may all mean known structures
        order = np.concatenate([first, order[~np.isin(order, first)]])
    return [list(map(float, candidates[i])) for i in order]


def at_random(
    _points: Sequence[Sequence[float]],
    _scores: Sequence[float],
    dimensions: int,
    seed: int,
    _canonical: Canonical = as_it_is,
) -> list[list[float]]:
    """Uniform random points: the control for comparisons with the search."""
    return [list(map(float, p)) for p in np.random.default_rng(seed).random((CANDIDATES, dimensions))]


def standardised(scores: Array) -> Array:
    """Scores scaled to mean 0 and standard deviation 1. Very low scores are first raised to a limit, which lies as far
    below the median as the best score lies above it.

    Scores of policies have a long tail of collapsed networks. How bad a collapse is teaches nothing, because the search
    decides among the good policies. As good policies become more, the median rises, and small differences count.
    """
    if not len(scores):
        return scores
    median, top = np.median(scores), scores.max()
    clipped = np.maximum(scores, median - REACH * (top - median))
    spread = clipped.std()
    return np.asarray((clipped - clipped.mean()) / (spread if spread > 0 else 1.0))


def _near(best: Array, random: np.random.Generator) -> Array:
    """Points a long or a short random step away from one of the best points, in about half of the dimensions."""
    centres = best[random.integers(len(best), size=NEAR)]
    steps = random.choice(NEAR_SPREADS, size=(NEAR, 1)) * random.standard_normal(centres.shape)
    steps *= random.random(centres.shape) < 0.5
    return np.asarray(np.clip(centres + steps, 0, 1))


def _process(dimensions: int, seed: int) -> GaussianProcessRegressor:
    """Gaussian process with a Matern 5/2 kernel, one length scale per dimension, and fitted noise. Its predictions
    leave the noise out, because exploring noise gains nothing."""
    kernel = ConstantKernel(1.0, (0.1, 10.0)) * Matern(np.ones(dimensions), [(0.05, 100.0)] * dimensions, nu=2.5)
    return GaussianProcessRegressor(
        kernel, noise="gaussian", normalize_y=False, random_state=seed % 2**32, n_restarts_optimizer=0
    )
