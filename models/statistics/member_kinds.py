"""The kinds of statistics that say what the answers lose with a member: by gradients, or by deleting it."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from models.statistics.gradient_scores import Scores
from models.statistics.statistics import BlockStatistics, Kind, Statistics

T = TypeVar("T", BlockStatistics, Statistics)
MemberKinds = dict[Kind, Callable[[], Scores]]


def add_member_scores(statistics: Statistics, kinds: Collection[Kind], ways: MemberKinds) -> Statistics:
    """The statistics with the kinds among `ways` that are wanted, each in the fields of its name."""
    for kind, find in ways.items():
        if kind in kinds:
            blocks, stream = find()
            pairs = zip(statistics.blocks, blocks, strict=True)
            with_members = tuple(_with(block, kind, scores) for block, scores in pairs)
            statistics = _with(dataclasses.replace(statistics, blocks=with_members), kind, stream)
    return statistics


def _with(value: T, kind: Kind, scores: Any) -> T:
    """The value with one field, named by the kind, replaced."""
    changes: dict[str, Any] = {kind: scores}
    return dataclasses.replace(value, **changes)
