"""The compact space: a handful to a dozen numbers for the whole network.

A direction x in [0, 1]^d says how eagerly each dimension gives; along it the
policy shrinks from everything (t = 0) over x itself (t = 1) to the smallest network (t = 2):
    keep_i(t) = 1 - a_i(t) * (1 - least_i),   a_i(t) = t x_i / max x  for t <= 1,  max(x_i / max x, t - 1)  above
so that every direction ends within every budget that can be met at all (mixes fade to 0 on the way there). Which member goes is the ranking's choice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.plan import BlockPlan, HeadPlan, Plan, TokenPlan, identity
from models.structure import Structure
from search.policy import Policy
from search.ranking import Array, Ranking
from search.spaces.pool import Pool
from search.token_rule import TokenRule

LEAST = {"heads": 0.15, "qk": 0.25, "v": 0.25, "neurons": 0.1, "tokens": 0.25}
"""Smallest fraction kept by the search: below, nothing is left to recover from."""
DIM_MULTIPLE, NEURON_MULTIPLE = 4, 16
STARTS: tuple[dict[str, float], ...] = (
    {"heads": 1.0, "qk": 1.0, "v": 1.0, "neurons": 1.0, "tokens": 1.0},
    {"neurons": 1.0},
    {"neurons": 1.0, "qk": 0.5, "v": 0.5},
    {"tokens": 1.0, "neurons": 0.5},
    {"tokens": 1.0},
    {"heads": 1.0, "neurons": 0.5, "tokens": 0.5},
)
"""How eagerly each axis gives at the start of a search: all alike, then what usually costs least by itself."""


class CompactSpace:
    """A handful of fractions for the whole network; per-block numbers come from the ranking."""

    def __init__(
        self, structure: Structure, ranking: Ranking, axes: Sequence[str], tokens: TokenRule | None = None
    ) -> None:
        """`axes`: those that may shrink; tokens also need a grid that is free."""
        self._rule = tokens or TokenRule()
        self.structure, self.ranking = structure, ranking
        self._identity = identity(structure)
        self._stages = self._rule.stages(structure) if "tokens" in axes else ()
        self.keeps = [a for a in ("heads", "qk", "v", "neurons") if a in axes and a not in structure.fixed]
        self.keeps += [f"tokens{i}" for i in range(len(self._stages))]
        self.mixes = [f"{a}_mix" for a in ("heads", "neurons") if a in axes] if ranking.across_blocks else []
        self._heads = Pool([b.heads for b in ranking.blocks], least=1)
        self._neurons = Pool([b.neurons for b in ranking.blocks], least=NEURON_MULTIPLE, multiple=NEURON_MULTIPLE)

    @property
    def dimensions(self) -> list[str]:
        return self.keeps + self.mixes

    def along(self, direction: Sequence[float], t: float) -> Policy:
        """The policy at t in [0, 2] along a direction (see above)."""
        eager = np.asarray(direction[: len(self.keeps)])
        eager = eager / max(eager.max(), 1e-9)
        amounts = eager * t if t <= 1 else np.maximum(eager, t - 1)
        values: dict[str, Any] = {}
        for name, amount in zip(self.keeps, amounts, strict=True):
            least = LEAST["tokens" if name.startswith("tokens") else name]
            values[name] = float(1 - amount * (1 - least))
        tokens = tuple(values.pop(name) for name in self.keeps if name.startswith("tokens"))
        fade = min(1.0, 2 - t)  # every direction ends in the same smallest network
        for name, x in zip(self.mixes, direction[len(self.keeps) :], strict=True):
            values[name] = fade * float(x)
        return Policy(tokens=tokens, **values)

    def starts(self) -> list[list[float]]:
        """Analytic directions, those that touch an axis of this space."""
        kinds = {name: "tokens" if name.startswith("tokens") else name for name in self.keeps}
        mixes = [0.0 if name == "heads_mix" else 0.5 for name in self.mixes]  # heads differ most between blocks
        starts = [[eager.get(kind, 0.0) for kind in kinds.values()] for eager in STARTS]
        return [start + mixes for start in starts if any(start)]

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        """Heads and tokens come in lumps; neurons use up what the last lump left."""
        if "neurons" not in self.keeps:
            return [policy]
        return [dataclasses.replace(policy, neurons=float(k)) for k in np.linspace(policy.neurons, 1.0, steps + 1)]

    def sketch(self, policy: Policy) -> Structure:
        heads = self._heads.counts(policy.heads, policy.heads_mix)
        neurons = self._neurons.counts(policy.neurons, policy.neurons_mix)
        kept = self._tokens_kept(policy)
        blocks = []
        for i in range(len(self.structure.blocks)):
            qk, v = self._dims(i, policy)
            thin = HeadPlan(range(qk), range(v))  # type: ignore[arg-type]
            blocks.append(BlockPlan(i, (thin,) * heads[i], range(neurons[i]), tokens=kept.get(i)))  # type: ignore[arg-type]
        return dataclasses.replace(self._identity, blocks=tuple(blocks)).shape_of(self.structure)

    def plan(self, policy: Policy) -> Plan:
        """The members that stay: the best of each axis by the ranking."""
        heads = self._heads.members(self._heads.counts(policy.heads, policy.heads_mix))
        neurons = self._neurons.members(self._neurons.counts(policy.neurons, policy.neurons_mix))
        kept = self._tokens_kept(policy)
        blocks = []
        for i, scores in enumerate(self.ranking.blocks):
            qk, v = self._dims(i, policy)
            thin = tuple(HeadPlan(_best_dims(scores.qk, h, qk), _best_dims(scores.v, h, v)) for h in heads[i])
            blocks.append(BlockPlan(i, thin, neurons[i], tokens=kept.get(i)))
        return dataclasses.replace(self._identity, blocks=tuple(blocks))

    def _dims(self, block: int, policy: Policy) -> tuple[int, int]:
        scores = self.ranking.blocks[block]
        return _multiple(policy.qk, scores.qk.shape[1]), _multiple(policy.v, scores.v.shape[1])

    def _tokens_kept(self, policy: Policy) -> dict[int, TokenPlan]:
        kept: dict[int, TokenPlan] = {}
        if not self._stages:
            return kept
        patches = self.structure.blocks[self._stages[0]].tokens - self.structure.prefix  # only one grid is free
        for block, keep in zip(self._stages, policy.tokens, strict=False):
            count = max(1, round(patches * keep))
            if count < patches:
                kept[block] = self._rule.plan(count)
                patches = count
        return kept


def _multiple(keep: float, size: int) -> int:
    return size if keep >= 1 else min(size, max(DIM_MULTIPLE, DIM_MULTIPLE * round(size * keep / DIM_MULTIPLE)))


def _best_dims(scores: Array, head: int, count: int) -> tuple[int, ...]:
    """Flat indices of the best dims of one head. scores (H, d)."""
    order = np.argsort(-scores[head], kind="stable")[:count]
    return tuple(int(i) for i in np.sort(order) + head * scores.shape[1])
