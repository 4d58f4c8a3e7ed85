"""Any space with one more dimension: how many of the linear layers are quantised.

    share(x, t) = least + (1 - least) * max(s(x), t - 1),     s(x) = (x - FLAT) / (1 - 2 FLAT), cut to [0, 1]
Beside the fractions kept it is no matter of how far: at the same x a network is pruned less or more, and its precision
stays, until the end of the direction (t > 1), where everything gives. So each budget is met at fp32 by pruning more, at
int8 by pruning less, or in between, and the search compares them by their scores. Layers are quantised in the order of
their sensitivity (models/evaluation/sensitivity.py), so what stays in fp32 is what quantisation would hurt most.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from models.structure import LAYERS, Layer, Plan, Precision, Structure
from search.policy import Policy
from search.ranking import Array
from search.spaces.space import Space

FLAT = 0.25
"""So much of the dimension at either end means all layers alike, which is what most searches end with."""
LEFT_OUT = 0.25
"""Of the layers, at most, where the network is to be int8."""
Member = tuple[int, Layer]
"""Block of the original and layer."""


class PrecisionSpace:
    """`inner` with int8 in it."""

    def __init__(
        self, inner: Space, order: Sequence[Member], precisions: Sequence[Precision], left_out: float = LEFT_OUT
    ) -> None:
        """order: all layers of all blocks, those that bear quantisation best first. left_out: share of them that may stay in
        fp32 without fp32 among the precisions; 0 for devices that price every network as if all were int8."""
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
        """Each start of the inner space in int8, and every other one in fp32 where that is allowed."""
        starts = []
        for number, start in enumerate(self.inner.starts()):
            starts.append([*start, 1.0])
            if self._least == 0 and number % 2 == 0:
                starts.append([*start, 0.0])
        return starts

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        return self.inner.fuller(policy, steps)

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
        """Of each block of the original, the layers that stay in fp32; None: all do, and the network is an fp32 one."""
        quantised = set(self._order[: round(policy.int8 * len(self._order))])
        if not quantised:
            return None
        return [
            tuple(layer for layer in LAYERS if (place, layer) not in quantised)
            for place in range(len(self.structure.blocks))
        ]


def _level(x: float) -> float:
    return float(np.clip((x - FLAT) / (1 - 2 * FLAT), 0, 1))
