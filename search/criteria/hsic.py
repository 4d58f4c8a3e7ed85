"""The HSIC criterion of MDC (arXiv 2201.00043, sections 3.2 and 4)."""

import numpy as np

from models.errors import InvalidRequest
from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import BlockStatistics
from search.criteria.magnitude import qk_scores
from search.ranking import Array, BlockRanking

REDUNDANCY = 0.1
MAGNITUDE_SHARE = 0.9


def minmax(values: Array) -> Array:
    span = values.max() - values.min()
    return np.asarray((values - values.min()) / (span if span > 0 else 1.0))


def head_scores(heads: Array, pairs: Array) -> Array:
    """HSIC(f_h, y) - 0.1 * mean over other heads g of HSIC(f_h, f_g)."""
    others = max(len(heads) - 1, 1)
    return np.asarray(heads - REDUNDANCY * (pairs.sum(1) - np.diagonal(pairs)) / others)


def neuron_scores(dependence: Array, magnitudes: Array) -> Array:
    """0.1 * minmax(HSIC(f_k, y)) + 0.9 * minmax(sum |f_k|)."""
    return (1 - MAGNITUDE_SHARE) * minmax(dependence) + MAGNITUDE_SHARE * minmax(magnitudes)


def hsic(weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    """Score heads and neurons as MDC does. MDC does not prune dims inside a head: the variance ranks v dims, and the
    norms of their weights rank q/k dims."""
    assert statistics is not None
    found = statistics.dependence
    if found is None:
        raise InvalidRequest(
            "Criterion 'hsic' needs statistics of kind 'dependence', but they are missing. Collect the statistics with"
            " kind 'dependence'."
        )
    heads = head_scores(np.asarray(found.heads.double()), np.asarray(found.head_pairs.double()))
    neurons = neuron_scores(np.asarray(found.neurons.double()), np.asarray(found.magnitudes.double()))
    v = np.asarray(statistics.projection.covariance.diagonal()).reshape(weights.heads, -1)
    return BlockRanking(heads, qk_scores(weights), v, neurons)
