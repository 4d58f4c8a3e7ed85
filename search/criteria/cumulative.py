"""Cumulative attention (CP-ViT, arXiv 2203.04570): a head is scored by the attention that it has gathered so far.

The score of a head in layer l is sum_{m <= l} score_m(h). score_m(h) is the sum over patches of the strongest attention
that any query pays to the patch. The paper does not publish its own head score in readable form. This one is the
paper's token score, summed over the patches of a head instead of the heads of a patch.

A head whose attention is the same for every query scores 1 over all tokens, which is the minimum. A head that picks a
different patch for each query scores highest. The values (v) play no part.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from models.errors import InvalidRequest
from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import BlockStatistics, Statistics
from search.criteria.variance import variance
from search.ranking import BlockRanking, Ranking


def cumulative(weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    """Score the heads of one layer. CP-ViT does not prune neurons and dims, so the variance ranks them."""
    assert statistics is not None
    if statistics.attention is None:
        raise InvalidRequest(
            "Criterion 'cumulative' needs statistics of kind 'attention', but they are missing. Collect the statistics"
            " with kind 'attention'."
        )
    return dataclasses.replace(variance(weights, statistics), heads=np.asarray(statistics.attention.heads.double()))


def accumulate(ranking: Ranking, _weights: Sequence[LayerWeights], statistics: Statistics | None) -> Ranking:
    """Replace each layer's head scores by their sum up to this layer, and add the attention range of each layer."""
    assert statistics is not None
    sums = np.cumsum([block.heads for block in ranking.blocks], axis=0)
    blocks = tuple(dataclasses.replace(b, heads=heads) for b, heads in zip(ranking.blocks, sums, strict=True))
    ranges = [float(block.attention.local) for block in statistics.blocks if block.attention is not None]
    return dataclasses.replace(ranking, blocks=blocks, ranges=np.asarray(ranges))
