"""UP-ViTs (arXiv 2111.15127): the divergence of the answers without a member, estimated from gradients or by deleting it."""

from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import BlockStatistics
from search.criteria.members import block_ranking
from search.ranking import BlockRanking


def kl(_weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    """The Fisher estimate: what a member's deletion costs, for a handful of backward passes in all."""
    assert statistics is not None
    return block_ranking("kl", "fisher", statistics.fisher)


def kl_exact(_weights: LayerWeights, statistics: BlockStatistics | None) -> BlockRanking:
    """As published: one deletion after the other. For small models."""
    assert statistics is not None
    return block_ranking("kl-exact", "deletion", statistics.deletion)
