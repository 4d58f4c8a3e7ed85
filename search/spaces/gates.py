"""The space of learned gates (VTP, arXiv 2104.08500): one number, the share of all gates that is kept.

One threshold over the gates of the whole network decides how many dims each layer reads. The residual stream, q, k and
v keep their full width: each projection gathers its own inputs from it. All heads of a block pass the same number of
output dims to the projection.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.errors import InvalidRequest
from models.structure import BlockPlan, Plan, Structure, identity
from models.structure.multiples import to_multiple
from search.policy import Policy
from search.ranking import Array, Ranking
from search.spaces.pool import Pool

LEAST = 0.1
"""Smallest share of the gates that the search keeps."""
MULTIPLE = 4
"""Inputs and neurons come in multiples of 4: one 128-bit register. Coarser steps would blur the threshold."""
Counts = tuple[int, int, int, int]
"""Sizes of one block: inputs of q/k/v, inputs of the projection, inputs of fc1, neurons."""


class GateSpace:
    """The inputs that learned gates weigh, under one global threshold."""

    def __init__(self, structure: Structure, ranking: Ranking) -> None:
        """Raises: InvalidRequest when the ranking has no scores for inputs."""
        self.structure, self.ranking = structure, ranking
        self._identity = identity(structure)
        self._scores = [_scores(block.inputs, block.neurons, ranking.criterion) for block in ranking.blocks]
        self._pool = Pool([scores for block in self._scores for scores in block], least=1)

    @property
    def dimensions(self) -> list[str]:
        return ["inputs"]

    def along(self, direction: Sequence[float], t: float) -> Policy:
        """The policy at t along the only direction: the whole network at t = 0, the smallest one at t = 2."""
        return Policy(inputs=1 - (1 - LEAST) * t / 2)

    def canonical(self, points: Array) -> Array:
        return points

    def starts(self) -> list[list[float]]:
        return [[1.0]]

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        """The policy alone, because the steps of the threshold are fine enough."""
        return [policy]

    def by_block(self, policy: Policy) -> Policy | None:
        return None

    def sketch(self, policy: Policy) -> Structure:
        return self._with_inputs(policy, lambda _scores, count, _heads: range(count)).shape_of(self.structure)

    def plan(self, policy: Policy) -> Plan:
        """The plan of a policy. The members with the largest gates stay."""
        return self._with_inputs(policy, _best)

    def _with_inputs(self, policy: Policy, members: Callable[[Array, int, int], Any]) -> Plan:
        """The plan of a policy. members(scores, count, groups) returns the `count` indices that stay, the same number
        from each of `groups` groups of equal size."""
        blocks = []
        for block, scores, counts in zip(self._identity.blocks, self._scores, self._counts(policy), strict=True):
            heads = len(block.heads)
            qkv, proj, fc1 = (
                None if count == len(mine) else members(mine, count, groups)
                for mine, count, groups in zip(scores[:3], counts[:3], (1, heads, 1), strict=True)
            )
            blocks.append(
                BlockPlan(
                    block.source,
                    block.heads,
                    members(scores[3], counts[3], 1),
                    qkv_inputs=qkv,
                    proj_inputs=proj,
                    fc1_inputs=fc1,
                )
            )
        return dataclasses.replace(self._identity, blocks=tuple(blocks))

    def _counts(self, policy: Policy) -> list[Counts]:
        found = self._pool.counts(policy.inputs, mix=1.0)
        rounded = []
        for block, i in zip(self._identity.blocks, range(0, len(found), 4), strict=True):
            qkv, proj, fc1, neurons = (len(scores) for scores in self._scores[i // 4])
            rounded.append(
                (
                    to_multiple(found[i], qkv, MULTIPLE),
                    to_multiple(found[i + 1], proj, len(block.heads)),
                    to_multiple(found[i + 2], fc1, MULTIPLE),
                    to_multiple(found[i + 3], neurons, MULTIPLE),
                )
            )
        return rounded


def _scores(inputs: tuple[Array, Array, Array] | None, neurons: Array, criterion: str) -> tuple[Array, ...]:
    if inputs is None:
        raise InvalidRequest(
            f"Criterion {criterion!r} does not rank the inputs of layers, but space 'gates' needs this ranking. Use"
            " criterion 'gates'."
        )
    return (*inputs, neurons)


def _best(scores: Array, count: int, groups: int) -> tuple[int, ...]:
    """Indices of the best `count` in ascending order, the same number from each of `groups` runs of equal length."""
    size = len(scores) // groups
    order = np.argsort(-scores.reshape(groups, size), axis=1, kind="stable")[:, : count // groups]
    return tuple(int(i) for i in np.sort((order + size * np.arange(groups)[:, None]).ravel()))
