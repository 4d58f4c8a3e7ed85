"""Depth as an axis: which sublayers (attention or MLP of a block) are removed, and how the plan around them changes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from models.structure import BlockPlan, Plan, Structure, TokenPlan
from search.ranking import Array

Half = tuple[int, int]
"""A sublayer: index of its block, then 0 for its attention or 1 for its MLP."""


class Halves:
    """The sublayers of a network in the order of their removal. scores: (2,) for each block.

    The best attention is never removed: without any attention, no token would see another one.
    """

    def __init__(self, structure: Structure, scores: Sequence[Array]) -> None:
        self._free = [stage.free_tokens for stage in structure.stages for _ in stage.blocks]
        table = np.stack(scores)
        kept = (int(table[:, 0].argmax()), 0)
        order = [divmod(int(i), 2) for i in np.argsort(table.ravel(), kind="stable")]
        self._order = [half for half in order if half != kept]

    def gone(self, keep: float) -> frozenset[Half]:
        """The sublayers to remove, those with the lowest scores, if the share `keep` of all sublayers stays."""
        total = len(self._order) + 1
        return frozenset(self._order[: total - max(1, round(keep * total))])

    def removed_from(self, plan: Plan, keep: float) -> Plan:
        """The plan without the sublayers that `gone` names.

        A block that loses both of its sublayers is removed. If a block that removes tokens loses its attention, the
        next block that can choose tokens removes them instead; if there is none, they stay.
        """
        gone = self.gone(keep)
        if not gone:
            return plan
        blocks = [_without(block, gone) for block in plan.blocks]
        blocks = [block for block in blocks if block.heads or block.neurons]
        stages = [(block.source, block.tokens) for block in plan.blocks if block.tokens is not None]
        placed = self._placed(stages, blocks)
        return dataclasses.replace(
            plan, blocks=tuple(dataclasses.replace(block, tokens=placed.get(block.source)) for block in blocks)
        )

    def _placed(self, stages: list[tuple[int, TokenPlan]], blocks: list[BlockPlan]) -> dict[int, TokenPlan]:
        first = next(block.source for block in blocks if block.heads)
        placed: dict[int, TokenPlan] = {}
        for source, tokens in stages:
            after = max([source - 1, *placed])
            for block in blocks:
                chooses = block.heads if tokens.at == "middle" else block.source > first
                if block.source > after and chooses and self._free[block.source]:
                    placed[block.source] = tokens
                    break
        return placed


def _without(block: BlockPlan, gone: frozenset[Half]) -> BlockPlan:
    if (block.source, 0) in gone:
        block = dataclasses.replace(block, heads=(), qkv_inputs=None, proj_inputs=None)
    return dataclasses.replace(block, neurons=(), fc1_inputs=None) if (block.source, 1) in gone else block
