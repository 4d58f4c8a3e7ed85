"""Cumulative attention (CP-ViT, arXiv 2203.04570): a head by the attention that it has gathered so far.

The score of a head in layer l is sum_{m <= l} score_m(h), score_m(h) being the sum over patches of the strongest attention
that any query pays to the patch. (The paper's own head score is not published in readable form; this is its token score,
summed over the patches of a head instead of the heads of a patch.) A head that looks the same way from everywhere scores 1
over all tokens, the least there is; one that picks a patch for each query scores most. Values are never looked at.
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
    """The layer's own head scores. CP-ViT leaves neurons and dims alone: they are ranked by variance."""
    assert statistics is not None
    if statistics.attention is None:
        raise InvalidRequest("Criterion 'cumulative' needs statistics that were taken with attention")
    return dataclasses.replace(variance(weights, statistics), heads=np.asarray(statistics.attention.heads.double()))


def accumulate(ranking: Ranking, _weights: Sequence[LayerWeights], statistics: Statistics | None) -> Ranking:
    """Each layer's heads by the sum up to it, and the attention range of each layer."""
    assert statistics is not None
    sums = np.cumsum([block.heads for block in ranking.blocks], axis=0)
    blocks = tuple(dataclasses.replace(b, heads=heads) for b, heads in zip(ranking.blocks, sums, strict=True))
    ranges = [float(block.attention.local) for block in statistics.blocks if block.attention is not None]
    return dataclasses.replace(ranking, blocks=blocks, ranges=np.asarray(ranges))
