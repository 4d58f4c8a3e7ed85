"""Variance of activations (variance-based pruning, ICCV 2025): a constant activation can be folded into a bias."""

import numpy as np

from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import BlockStatistics
from search.criteria.magnitude import qk_scores
from search.ranking import BlockRanking


def variance(weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    """Score neurons by their variance after the activation, heads and v dims by that of the attention's output."""
    assert statistics is not None
    outputs = np.asarray(statistics.projection.covariance.diagonal()).reshape(weights.heads, -1)
    neurons = np.asarray(statistics.neurons.covariance.diagonal())
    return BlockRanking(outputs.sum(1), qk_scores(weights), outputs, neurons)
