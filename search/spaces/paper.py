"""The space of MDC's paper (arXiv 2201.00043, section 3.4). It has a keep ratio for each block's neurons, one for each
block's heads, and one that all token reductions share: 25 numbers for 12 blocks.

Each keep ratio is at least one half: keep_i(t) = 1 - a_i(t) / 2, with a_i(t) as in search/spaces/directions.py. The
smallest network of this space, at t = 2, has half of everything.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from models.structure import BlockPlan, HeadPlan, Plan, Structure, TokenPlan, identity
from models.structure.multiples import NEURON_MULTIPLE
from search.policy import Policy
from search.ranking import Array, Ranking
from search.spaces.directions import amounts, analytic_starts, canonical
from search.spaces.pool import Pool
from search.token_rule import TokenRule

LEAST = 0.5


class PaperSpace:
    """2 L + 1 dimensions for L blocks; 2 L if no tokens can be removed."""

    def __init__(self, structure: Structure, ranking: Ranking, tokens: TokenRule) -> None:
        self.structure, self.ranking, self._rule = structure, ranking, tokens
        self._identity = identity(structure)
        self._stages = tokens.stages(structure)
        self._heads = Pool([b.heads for b in ranking.blocks], least=1)
        self._neurons = Pool([b.neurons for b in ranking.blocks], least=NEURON_MULTIPLE, multiple=NEURON_MULTIPLE)

    @property
    def dimensions(self) -> list[str]:
        blocks = range(len(self.structure.blocks))
        names = [f"neurons{i}" for i in blocks] + [f"heads{i}" for i in blocks]
        return names + (["tokens"] if self._stages else [])

    def along(self, direction: Sequence[float], t: float) -> Policy:
        keeps = [float(1 - a * (1 - LEAST)) for a in amounts(direction, t, self._axes)]
        depth = len(self.structure.blocks)
        neurons, heads, tokens = keeps[:depth], keeps[depth : 2 * depth], keeps[2 * depth :]
        return Policy(neurons_by_block=tuple(neurons), heads_by_block=tuple(heads), tokens=tuple(tokens))

    @property
    def _axes(self) -> list[str]:
        return [name.rstrip("0123456789") for name in self.dimensions]

    def canonical(self, points: Array) -> Array:
        return canonical(points, self._axes)

    def starts(self) -> list[list[float]]:
        return analytic_starts(self._axes)

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        """Let the neurons of all blocks grow together, to use up what the last step of heads or tokens left."""
        return [
            dataclasses.replace(policy, neurons_by_block=tuple(k + (1 - k) * share for k in policy.neurons_by_block))
            for share in np.linspace(0.0, 1.0, steps + 1).tolist()
        ]

    def by_block(self, policy: Policy) -> Policy | None:
        return None

    def sketch(self, policy: Policy) -> Structure:
        heads, neurons, kept = self._head_counts(policy), self._neuron_counts(policy), self._tokens_kept(policy)
        blocks = []
        for i, block in enumerate(self._identity.blocks):
            fewer: tuple[HeadPlan, ...] = block.heads[: heads[i]]
            blocks.append(BlockPlan(i, fewer, range(neurons[i]), tokens=kept.get(i)))  # type: ignore[arg-type]
        return dataclasses.replace(self._identity, blocks=tuple(blocks)).shape_of(self.structure)

    def plan(self, policy: Policy) -> Plan:
        heads = self._heads.members(self._head_counts(policy))
        neurons, kept = self._neurons.members(self._neuron_counts(policy)), self._tokens_kept(policy)
        blocks = []
        for i, block in enumerate(self._identity.blocks):
            best = tuple(block.heads[head] for head in heads[i])
            blocks.append(BlockPlan(i, best, neurons[i], tokens=kept.get(i)))
        return dataclasses.replace(self._identity, blocks=tuple(blocks))

    def _head_counts(self, policy: Policy) -> list[int]:
        return self._heads.counts_by_block(policy.heads_by_block)

    def _neuron_counts(self, policy: Policy) -> list[int]:
        return self._neurons.counts_by_block(policy.neurons_by_block)

    def _tokens_kept(self, policy: Policy) -> dict[int, TokenPlan]:
        patches, kept = self.structure.tokens - self.structure.prefix, {}
        for block in self._stages if policy.tokens else ():
            count = max(1, round(patches * policy.tokens[0]))
            if count < patches:
                kept[block] = self._rule.plan(count)
                patches = count
        return kept
