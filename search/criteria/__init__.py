"""The registry of importance criteria: name -> function from weights and statistics to block rankings.

A new criterion needs an entry in `CRITERIA` here, its title in `CRITERION_TITLES`, and its name in the `criteria` of
the methods that support it (both in search/methods.py).
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.errors import InvalidRequest
from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import BlockStatistics, Kind, Statistics
from search.criteria.cumulative import accumulate, cumulative
from search.criteria.gates import gates
from search.criteria.hsic import hsic
from search.criteria.kl import kl, kl_exact
from search.criteria.magnitude import magnitude
from search.criteria.members import with_stream
from search.criteria.reconstruction import reconstruction, with_width
from search.criteria.taylor import taylor
from search.criteria.variance import variance
from search.methods import check_criterion
from search.ranking import BlockRanking, Ranking

RankBlock = Callable[[LayerWeights, BlockStatistics | None], BlockRanking]


@dataclass(frozen=True)
class Criterion:
    """How one criterion scores the members.

    forward_passes: number of passes over the calibration images. across_blocks: True if scores of different blocks can
    be compared. needs: kinds of statistics that are collected beside means and covariances. whole: the last step, which
    needs all blocks at once.
    """

    rank_block: RankBlock
    forward_passes: int
    across_blocks: bool
    needs: frozenset[Kind] = frozenset()
    whole: Callable[[Ranking, Sequence[LayerWeights], Statistics | None], Ranking] | None = None


CRITERIA = {
    "magnitude": Criterion(magnitude, 0, across_blocks=False),
    "variance": Criterion(variance, 1, across_blocks=True),
    "hsic": Criterion(hsic, 2, across_blocks=False, needs=frozenset({"dependence"})),
    "reconstruction": Criterion(reconstruction, 1, across_blocks=True, whole=with_width),
    "cumulative": Criterion(cumulative, 2, across_blocks=False, needs=frozenset({"attention"}), whole=accumulate),
    "taylor": Criterion(taylor, 1, across_blocks=True, needs=frozenset({"taylor"}), whole=with_stream("taylor")),
    "kl": Criterion(kl, 1, across_blocks=True, needs=frozenset({"fisher"}), whole=with_stream("fisher")),
    "kl-exact": Criterion(
        kl_exact, 1, across_blocks=True, needs=frozenset({"deletion"}), whole=with_stream("deletion")
    ),
    "gates": Criterion(gates, 2, across_blocks=True, needs=frozenset({"gates", "inputs"})),
}


def rank(name: str, weights: Sequence[LayerWeights], statistics: Statistics | None) -> Ranking:
    """Rank all members by one criterion.

    Raises: UnknownName; InvalidRequest when the criterion needs statistics and there are none.
    """
    check_criterion(name)
    criterion, start = CRITERIA[name], time.perf_counter()
    if statistics is None and criterion.forward_passes:
        raise InvalidRequest(
            f"Criterion {name!r} needs calibration images, but there are none. Give images, or use criterion"
            " 'magnitude', which needs no images."
        )
    seen: Sequence[BlockStatistics | None] = statistics.blocks if statistics is not None else [None] * len(weights)
    blocks = tuple(criterion.rank_block(w, s) for w, s in zip(weights, seen, strict=True))
    ranking = Ranking(name, blocks, criterion.across_blocks, criterion.forward_passes)
    ranking = dataclasses.replace(ranking, seconds=time.perf_counter() - start)
    return ranking if criterion.whole is None else criterion.whole(ranking, weights, statistics)
