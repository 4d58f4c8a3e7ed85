"""Any space with one more dimension: the share of the linear layers that are quantised to int8.

    share(x, t) = least + (1 - least) * max(s(x), t - 1),     s(x) = (x - FLAT) / (1 - 2 FLAT), cut to [0, 1]
The quantised share does not change with the distance t along a direction until t exceeds 1. Up to there, the same x
means the same precision, whether the network is pruned less or more. Above t = 1 all dimensions move to their end. So a
budget can be met in fp32 with more pruning, in int8 with less pruning, or in between, and the search compares these
networks by their scores. Layers are quantised in the order of their sensitivity (models/evaluation/sensitivity.py), so
the layers that stay in fp32 are those that quantisation would hurt most.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from models.structure import LAYERS, Layer, Plan, Precision, Structure
from search.policy import Policy
from search.ranking import Array
from search.spaces.space import Space

FLAT = 0.25
"""This much of the dimension at either end gives the smallest or the largest share. Most searches end there."""
LEFT_OUT = 0.25
"""Largest share of the layers that may stay in fp32 if the network has to be int8."""
Member = tuple[int, Layer]
"""A linear layer: index of its block in the original, and which layer of the block."""


class PrecisionSpace:
    """The space `inner`, with the quantised share as one more dimension."""

    def __init__(
        self, inner: Space, order: Sequence[Member], precisions: Sequence[Precision], left_out: float = LEFT_OUT
    ) -> None:
        """Args:
        order: all linear layers of all blocks. Those that lose least by quantisation come first.
        left_out: share of the layers that may stay in fp32 although fp32 is not among the precisions. It is 0 for
            devices that price every network as if all its layers were int8.
        """
        self.structure, self.inner, self._order = inner.structure, inner, tuple(order)
        self._least = 0.0 if "fp32" in precisions else 1 - left_out
        self._places = {block.name: i for i, block in enumerate(inner.structure.blocks)}

    @property
    def dimensions(self) -> list[str]:
        return [*self.inner.dimensions, "int8"]

    def along(self, direction: Sequence[float], t: float) -> Policy:
        share = max(_level(direction[-1]), t - 1)
        policy = self.inner.along(direction[:-1], t)
        return dataclasses.replace(policy, int8=float(self._least + (1 - self._least) * share))

    def canonical(self, points: Array) -> Array:
        last = len(self.inner.dimensions)
        found = np.array(points, dtype=float)
        found[:, :last] = self.inner.canonical(found[:, :last])
        found[:, last] = [_level(x) for x in found[:, last]]
        return found

    def starts(self) -> list[list[float]]:
        """Each start of the inner space in int8, and every second one also in fp32 if fp32 is allowed."""
        starts = []
        for number, start in enumerate(self.inner.starts()):
            starts.append([*start, 1.0])
            if self._least == 0 and number % 2 == 0:
                starts.append([*start, 0.0])
        return starts

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        return self.inner.fuller(policy, steps)

    def by_block(self, policy: Policy) -> Policy | None:
        return self.inner.by_block(policy)

    def sketch(self, policy: Policy) -> Structure:
        structure, exact = self.inner.sketch(policy), self.exact(policy)
        if exact is None:
            return structure
        stages = []
        for stage in structure.stages:
            blocks = (
                dataclasses.replace(block, precision="int8", exact=exact[self._places[block.name]])
                for block in stage.blocks
            )
            stages.append(dataclasses.replace(stage, blocks=tuple(blocks)))
        return dataclasses.replace(structure, stages=tuple(stages))

    def plan(self, policy: Policy) -> Plan:
        plan, exact = self.inner.plan(policy), self.exact(policy)
        if exact is None:
            return plan
        blocks = tuple(dataclasses.replace(block, exact=exact[block.source]) for block in plan.blocks)
        return dataclasses.replace(plan, blocks=blocks, precision="int8")

    def exact(self, policy: Policy) -> list[tuple[Layer, ...]] | None:
        """The layers that stay in fp32, for each block of the original. None: all layers, so the network is fp32."""
        quantised = set(self._order[: round(policy.int8 * len(self._order))])
        if not quantised:
            return None
        return [
            tuple(layer for layer in LAYERS if (place, layer) not in quantised)
            for place in range(len(self.structure.blocks))
        ]


def _level(x: float) -> float:
    return float(np.clip((x - FLAT) / (1 - 2 * FLAT), 0, 1))
