"""Learned gates (VTP, arXiv 2104.08500): scores an input by its gate's size after training with an L1 penalty."""

import numpy as np
from torch import Tensor

from models.errors import InvalidRequest
from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import BlockStatistics
from search.criteria.magnitude import qk_scores
from search.ranking import Array, BlockRanking


def gates(weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    """Score a head by the sum of its gates. q/k dims have no gates, so the norms of their weights rank them."""
    assert statistics is not None
    found = statistics.gates
    if found is None:
        raise InvalidRequest(
            "Criterion 'gates' needs a network with trained gates, but this network has none. Use method 'vtp', which"
            " trains gates."
        )
    qkv, proj, fc1, neurons = (
        _size(gate) for gate in (found.qkv_inputs, found.proj_inputs, found.fc1_inputs, found.neurons)
    )
    v = proj.reshape(weights.heads, -1)
    return BlockRanking(v.sum(1), qk_scores(weights), v, neurons, inputs=(qkv, proj, fc1))


def _size(gate: Tensor) -> Array:
    return np.asarray(gate.detach().double().abs())
