"""The registry of importance criteria: name -> function from weights and statistics to block rankings."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.errors import InvalidRequest
from models.network import LayerWeights
from models.statistics import BlockStatistics, Kind, Statistics
from search.criteria.gates import gates
from search.criteria.hsic import hsic
from search.criteria.magnitude import magnitude
from search.criteria.reconstruction import reconstruction
from search.criteria.variance import variance
from search.methods import check_criterion
from search.ranking import BlockRanking, Ranking

RankBlock = Callable[[LayerWeights, BlockStatistics | None], BlockRanking]


@dataclass(frozen=True)
class Criterion:
    """forward_passes: over the calibration images. across_blocks: scores compare between blocks. needs: statistics
    beyond the moments."""

    rank_block: RankBlock
    forward_passes: int
    across_blocks: bool
    needs: frozenset[Kind] = frozenset()


CRITERIA = {
    "magnitude": Criterion(magnitude, 0, across_blocks=False),
    "variance": Criterion(variance, 1, across_blocks=True),
    "hsic": Criterion(hsic, 2, across_blocks=False, needs=frozenset({"dependence"})),
    "reconstruction": Criterion(reconstruction, 1, across_blocks=True),
    "gates": Criterion(gates, 2, across_blocks=True, needs=frozenset({"gates", "inputs"})),
}


def rank(name: str, weights: Sequence[LayerWeights], statistics: Statistics | None) -> Ranking:
    """Raises: UnknownName; InvalidRequest when the criterion needs statistics and there are none."""
    check_criterion(name)
    criterion, start = CRITERIA[name], time.perf_counter()
    if statistics is None and criterion.forward_passes:
        raise InvalidRequest(f"Criterion {name!r} needs calibration images; only 'magnitude' works without")
    seen: Sequence[BlockStatistics | None] = statistics.blocks if statistics is not None else [None] * len(weights)
    blocks = tuple(criterion.rank_block(w, s) for w, s in zip(weights, seen, strict=True))
    ranking = Ranking(name, blocks, criterion.across_blocks, criterion.forward_passes)
    return dataclasses.replace(ranking, seconds=time.perf_counter() - start)
