"""Shared by criteria that score a member by what the answers lose without it: Taylor and both kinds of KL."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from models.errors import InvalidRequest
from models.statistics.layer_weights import LayerWeights
from models.statistics.member_scores import MemberScores, StreamScores
from models.statistics.statistics import Kind, Statistics
from search.ranking import Array, BlockRanking, Ranking


def block_ranking(criterion: str, kind: Kind, scores: MemberScores | None) -> BlockRanking:
    """Turn member scores into a block ranking. Raises: InvalidRequest when the statistics have no such kind."""
    if scores is None:
        raise InvalidRequest(
            f"Criterion {criterion!r} needs statistics of kind {kind!r}, but they are missing. Collect the statistics"
            f" with kind {kind!r}."
        )
    return BlockRanking(
        heads=_array(scores.heads),
        qk=_array(scores.qk),
        v=_array(scores.v),
        neurons=_array(scores.neurons),
        halves=_array(scores.halves),
        dims=_array(scores.dims),
    )


def with_stream(kind: Kind) -> Callable[[Ranking, Sequence[LayerWeights], Statistics | None], Ranking]:
    """Make the last step of a criterion. It adds the scores of embedding dims, and the passes and seconds they took."""

    def whole(ranking: Ranking, _weights: Sequence[LayerWeights], statistics: Statistics | None) -> Ranking:
        found: StreamScores | None = getattr(statistics, kind)
        assert found is not None
        passes, seconds = found.cost.tolist()
        return dataclasses.replace(
            ranking,
            embed=_array(found.embed) if len(found.embed) else None,
            forward_passes=ranking.forward_passes + round(passes),
            seconds=ranking.seconds + seconds,
        )

    return whole


def _array(scores: Tensor) -> Array:
    return np.asarray(scores.double())
