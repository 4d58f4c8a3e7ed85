"""First-order Taylor: |activation * gradient| of the task's loss, summed over tokens.

Molchanov et al., arXiv 1611.06440.
"""

from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import BlockStatistics
from search.criteria.members import block_ranking
from search.ranking import BlockRanking


def taylor(_weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    assert statistics is not None
    return block_ranking("taylor", "taylor", statistics.taylor)
