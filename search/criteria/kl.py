"""UP-ViTs (arXiv 2111.15127): a member is scored by how far the answers diverge without it.

The divergence is estimated from gradients, or measured by leave-one-out.
"""

from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import BlockStatistics
from search.criteria.members import block_ranking
from search.ranking import BlockRanking


def kl(_weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    """Score members by the Fisher estimate of the divergence. It takes only a few backward passes for all members."""
    assert statistics is not None
    return block_ranking("kl", "fisher", statistics.fisher)


def kl_exact(_weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    """Score members as published: remove one after the other (leave-one-out). For small models only."""
    assert statistics is not None
    return block_ranking("kl-exact", "deletion", statistics.deletion)
