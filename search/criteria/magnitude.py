"""Weight magnitude: a member is scored by the L2 norm of all weights that belong to it."""

import numpy as np
from torch import Tensor

from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import BlockStatistics
from search.ranking import Array, BlockRanking


def rows(weight: Tensor) -> Array:
    """Squared norm of each row."""
    return np.asarray((weight.detach().double() ** 2).sum(1))


def qkv_rows(weights: LayerWeights) -> tuple[Array, Array, Array]:
    """Squared norms of the q, k and v rows, each (H, dim)."""
    q, k, v = rows(weights.qkv.weight).reshape(3, weights.heads, -1)
    return q, k, v


def qk_scores(weights: LayerWeights) -> Array:
    """(H, qk_dim): norm of the q row times norm of the k row, because a q/k dim adds q_i k_i to the logits."""
    q, k, _ = qkv_rows(weights)
    return np.sqrt(q * k)


def magnitude(weights: LayerWeights, _statistics: BlockStatistics | None) -> BlockRanking:
    q, k, v = qkv_rows(weights)
    out = rows(weights.projection.weight.T).reshape(weights.heads, -1)
    neurons = np.sqrt(rows(weights.fc1.weight) + rows(weights.fc2.weight.T))
    return BlockRanking(np.sqrt((q + k + v + out).sum(1)), qk_scores(weights), np.sqrt(v + out), neurons)
