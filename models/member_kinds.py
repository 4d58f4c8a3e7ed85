"""The kinds of statistics that say what the answers lose with a member: by gradients, or by deleting it."""

import dataclasses
from collections.abc import Callable, Collection

from models.gradients import Scores
from models.statistics import Kind, Statistics

MemberKinds = dict[Kind, Callable[[], Scores]]


def add_member_scores(statistics: Statistics, kinds: Collection[Kind], ways: MemberKinds) -> Statistics:
    """The statistics with the kinds among `ways` that are wanted, each in the fields of its name."""
    for kind, find in ways.items():
        if kind in kinds:
            blocks, stream = find()
            with_members = (
                dataclasses.replace(block, **{kind: scores})
                for block, scores in zip(statistics.blocks, blocks, strict=True)
            )
            statistics = dataclasses.replace(statistics, blocks=tuple(with_members), **{kind: stream})
    return statistics
