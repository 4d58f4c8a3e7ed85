"""The kinds of statistics that score members by the change of the outputs: by gradients, or by leave-one-out."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from models.statistics.gradient_scores import Scores
from models.statistics.statistics import BlockStatistics, Kind, Statistics

T = TypeVar("T", BlockStatistics, Statistics)
MemberKinds = dict[Kind, Callable[[], Scores]]


def add_member_scores(statistics: Statistics, kinds: Collection[Kind], ways: MemberKinds) -> Statistics:
    """Return the statistics with the member scores of every kind that is in both `kinds` and `ways`.

    The scores of a kind are stored in the fields with its name.
    """
    for kind, find in ways.items():
        if kind in kinds:
            blocks, stream = find()
            pairs = zip(statistics.blocks, blocks, strict=True)
            with_members = tuple(_with(block, kind, scores) for block, scores in pairs)
            statistics = _with(dataclasses.replace(statistics, blocks=with_members), kind, stream)
    return statistics


def _with(value: T, kind: Kind, scores: Any) -> T:
    """Return a copy of `value` in which the field with the name of the kind is replaced."""
    changes: dict[str, Any] = {kind: scores}
    return dataclasses.replace(value, **changes)
