"""CP-ViT's space (arXiv 2203.04570): tokens and heads are removed layer by layer and never come back.

Every block except the first of its stage can remove tokens at its start. The attention of the earlier layers decides
which. `TokenRule.depths` splits the depth into spans (CP-ViT: they end at a third of the depth and at its end). The
policy says what is left at the end of each span: of the tokens that enter span i, the share `tokens[i]` is left at its
end. Of the heads, the share `heads` is left in the last block. In between, layer l removes a share in proportion to how
far it looks:
    removed(l) = (1 - keep) * w_l / sum of w over the span,    w_l = max(1 - range_l, 0.05)
range_l is the attention range, near 1 where the layer looks around each patch. So local layers remove little, global
layers remove much, and every layer removes something. (The paper's own map from range to keep ratio is unpublished;
what is known is that the removed share grows with depth.) Without measured ranges every layer removes the same share.

Each layer keeps the heads with the best scores among those that the layer before has kept, so a removed head index
never comes back.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.structure import BlockPlan, Plan, Structure, TokenPlan, identity
from search.policy import Policy
from search.ranking import Array, Ranking
from search.spaces.directions import amounts, analytic_starts, canonical
from search.token_rule import TokenRule

LEAST = {"heads": 0.15, "tokens": 0.25}
"""Smallest keep ratio in the search: of the heads, and of the tokens in each span."""
LEAST_WEIGHT = 0.05


class CascadeSpace:
    """Dimensions: the share of tokens left at the end of each span, and the share of heads left in the last block."""

    def __init__(self, structure: Structure, ranking: Ranking, axes: Sequence[str], tokens: TokenRule) -> None:
        self.structure, self.ranking, self._rule = structure, ranking, tokens
        self._identity = identity(structure)
        self._spans = spans(structure, tokens) if "tokens" in axes else []
        self._axes = ["tokens"] * len(self._spans) + ["heads"] * ("heads" in axes)
        ranges = ranking.ranges if ranking.ranges is not None else np.zeros(len(structure.blocks))
        self._weights = np.maximum(1 - ranges, LEAST_WEIGHT)

    @property
    def dimensions(self) -> list[str]:
        return [f"tokens{i}" if axis == "tokens" else axis for i, axis in enumerate(self._axes)]

    def along(self, direction: Sequence[float], t: float) -> Policy:
        gone = amounts(direction, t, self._axes)
        keeps = [float(1 - a * (1 - LEAST[axis])) for axis, a in zip(self._axes, gone, strict=True)]
        heads = keeps[-1] if "heads" in self._axes else 1.0
        return Policy(heads=heads, tokens=tuple(keeps[: len(self._spans)]))

    def canonical(self, points: Array) -> Array:
        return canonical(points, self._axes)

    def starts(self) -> list[list[float]]:
        """The analytic directions, and, if there are several spans, the tokens of each span alone."""
        each = [[float(i == j) for j in range(len(self._axes))] for i in range(len(self._spans))]
        return analytic_starts(self._axes) + (each if len(each) > 1 else [])

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        """Let the tokens of the last span grow, because they change in the smallest steps."""
        if not policy.tokens:
            return [policy]
        *early, last = policy.tokens
        return [dataclasses.replace(policy, tokens=(*early, float(keep))) for keep in np.linspace(last, 1.0, steps + 1)]

    def by_block(self, policy: Policy) -> Policy | None:
        return None

    def sketch(self, policy: Policy) -> Structure:
        return self._with_heads(policy, [range(count) for count in self.head_counts(policy)]).shape_of(self.structure)

    def plan(self, policy: Policy) -> Plan:
        kept, left = [], np.arange(len(self._identity.blocks[0].heads))
        for count, scores in zip(self.head_counts(policy), self.ranking.blocks, strict=True):
            left = np.sort(left[np.argsort(-scores.heads[left], kind="stable")[:count]])
            kept.append([int(head) for head in left])
        return self._with_heads(policy, kept)

    def head_counts(self, policy: Policy) -> list[int]:
        """Number of heads in each block, never more than in the block before."""
        whole = len(self._identity.blocks[0].heads)
        left = 1 - (1 - policy.heads) * _shares(self._weights)
        return [max(1, round(whole * float(keep))) for keep in left]

    def token_counts(self, policy: Policy) -> list[int]:
        """Number of patch tokens that each block attends to."""
        counts = np.full(len(self.structure.blocks), self.structure.tokens - self.structure.prefix)
        for blocks, keep in zip(self._spans, policy.tokens, strict=True):
            entered = int(counts[blocks[0]])
            gone = (1 - keep) * _shares(self._weights[blocks])
            counts[blocks] = [max(1, round(entered * float(1 - share))) for share in gone]
            counts[blocks[-1] :] = counts[blocks[-1]]
        return [int(count) for count in counts]

    def _with_heads(self, policy: Policy, heads: Sequence[Sequence[int]]) -> Plan:
        counts = self.token_counts(policy)
        blocks: list[BlockPlan] = []
        for i, (block, members) in enumerate(zip(self._identity.blocks, heads, strict=True)):
            changes: dict[str, Any] = {"heads": tuple(block.heads[head] for head in members)}
            if i and counts[i] < counts[i - 1]:
                changes["tokens"] = TokenPlan(counts[i], self._rule.reducer, "start", self._rule.score)
            blocks.append(dataclasses.replace(block, **changes))
        return dataclasses.replace(self._identity, blocks=tuple(blocks))


def spans(structure: Structure, rule: TokenRule) -> list[list[int]]:
    """Blocks at whose start tokens may be removed, split at the rule's depths. Empty spans are left out."""
    free: list[int] = []
    first = 0
    for stage in structure.stages:
        free += range(first + 1, first + len(stage.blocks)) if stage.free_tokens else []
        first += len(stage.blocks)
    ends = [round(first * depth) for depth in sorted(rule.depths)]
    found = [[i for i in free if start <= i < end] for start, end in zip([0, *ends], ends, strict=False)]
    return [blocks for blocks in found if blocks]


def _shares(weights: Array) -> Array:
    """Running sum of the weights, as a share of their total; the last value is 1."""
    return np.asarray(np.cumsum(weights) / weights.sum())
