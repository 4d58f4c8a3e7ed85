"""How much to keep: the few numbers that the search proposes, and the one place that knows how they become a vector.

A `Policy` holds fractions kept, in (0, 1]. A direction x in [0, 1]^d says how eagerly each dimension gives; along it the
policy shrinks from everything (t = 0) over x itself (t = 1) to the smallest network (t = 2):
    keep_i(t) = 1 - a_i(t) * (1 - least_i),   a_i(t) = t x_i / max x  for t <= 1,  max(x_i / max x, t - 1)  above
so that every direction ends within every budget that can be met at all (mixes fade to 0 on the way there). Which member goes is the ranking's choice.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.plan import BlockPlan, HeadPlan, Plan, TokenPlan, identity
from models.record import Record
from models.structure import Structure
from search.ranking import Array, Ranking

LEAST = {"heads": 0.15, "qk": 0.25, "v": 0.25, "neurons": 0.1, "tokens": 0.25}
"""Smallest fraction kept by the search: below, nothing is left to recover from."""
TOKEN_STAGES = (0.25, 0.5, 0.75)
"""Tokens leave after the attention of the blocks at these depths: blocks 4, 7, 10 of 12, as in MDC and SPViT."""
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


@dataclass(frozen=True)
class Policy(Record):
    """Fractions kept of heads, q/k dims per head, v dims per head, neurons; of the patch tokens at each stage.

    mix: 0 spreads what is removed evenly over blocks, 1 lets the scores decide between blocks.
    """

    heads: float = 1.0
    qk: float = 1.0
    v: float = 1.0
    neurons: float = 1.0
    tokens: tuple[float, ...] = ()
    heads_mix: float = 0.0
    neurons_mix: float = 0.0


class PolicySpace:
    """Policies of one network: vector layout, plans, sketches of plans for pricing."""

    def __init__(self, structure: Structure, ranking: Ranking, axes: Sequence[str]) -> None:
        """`axes`: those that may shrink; tokens also need a grid that is free."""
        self.structure, self.ranking = structure, ranking
        self._identity = identity(structure)
        self._stages = _token_stages(structure) if "tokens" in axes else ()
        self.keeps = [axis for axis in ("heads", "qk", "v", "neurons") if axis in axes]
        self.keeps += [f"tokens{i}" for i in range(len(self._stages))]
        self.mixes = [f"{a}_mix" for a in ("heads", "neurons") if a in axes] if ranking.across_blocks else []
        self._heads = _Pool([b.heads for b in ranking.blocks], least=1)
        self._neurons = _Pool([b.neurons for b in ranking.blocks], least=NEURON_MULTIPLE, multiple=NEURON_MULTIPLE)

    @property
    def dimensions(self) -> list[str]:
        return self.keeps + self.mixes

    def along(self, direction: Sequence[float], t: float) -> Policy:
        """The policy at t in [0, 2] along a direction (see above)."""
        eager = np.asarray(direction[: len(self.keeps)])
        eager = eager / max(eager.max(), 1e-9)
        amounts = eager * t if t <= 1 else np.maximum(eager, t - 1)
        values = {}
        for name, amount in zip(self.keeps, amounts, strict=True):
            least = LEAST["tokens" if name.startswith("tokens") else name]
            values[name] = float(1 - amount * (1 - least))
        tokens = tuple(values.pop(name) for name in self.keeps if name.startswith("tokens"))
        fade = min(1.0, 2 - t)  # every direction ends in the same smallest network
        mixes = {name: fade * float(x) for name, x in zip(self.mixes, direction[len(self.keeps) :], strict=True)}
        return Policy(tokens=tokens, **values, **mixes)

    def starts(self) -> list[list[float]]:
        """Analytic directions, those that touch an axis of this space."""
        kinds = {name: "tokens" if name.startswith("tokens") else name for name in self.keeps}
        mixes = [0.0 if name == "heads_mix" else 0.5 for name in self.mixes]  # heads differ most between blocks
        starts = [[eager.get(kind, 0.0) for kind in kinds.values()] for eager in STARTS]
        return [start + mixes for start in starts if any(start)]

    def sketch(self, policy: Policy) -> Structure:
        """The structure of `plan(policy)`, without naming members: what pricing needs, a hundred times cheaper."""
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
        heads = self._heads.members(policy.heads, policy.heads_mix)
        neurons = self._neurons.members(policy.neurons, policy.neurons_mix)
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
        patches, kept = self.structure.tokens - self.structure.prefix, {}
        for block, keep in zip(self._stages, policy.tokens, strict=False):
            count = max(1, round(patches * keep))
            if count < patches:
                kept[block] = TokenPlan(count)
                patches = count
        return kept


def _token_stages(structure: Structure) -> tuple[int, ...]:
    """Block indices, once each, only where the grid is free."""
    free = [stage.free_tokens for stage in structure.stages for _ in stage.blocks]
    wanted = sorted({int(len(free) * depth) for depth in TOKEN_STAGES})
    return tuple(i for i in wanted if free[i])


def _multiple(keep: float, size: int) -> int:
    return size if keep >= 1 else min(size, max(DIM_MULTIPLE, DIM_MULTIPLE * round(size * keep / DIM_MULTIPLE)))


def _best_dims(scores: Array, head: int, count: int) -> tuple[int, ...]:
    """Flat indices of the best dims of one head. scores (H, d)."""
    order = np.argsort(-scores[head], kind="stable")[:count]
    return tuple(int(i) for i in np.sort(order) + head * scores.shape[1])


class _Pool:
    """The members of one axis over all blocks, and how many of each block stay."""

    def __init__(self, blocks: Sequence[Array], least: int, multiple: int = 1) -> None:
        self._blocks, self._least, self._multiple = blocks, least, multiple
        self._within = np.concatenate([_ranks(scores) for scores in blocks])
        self._over_all = _ranks(np.concatenate(blocks))
        self._owner = np.repeat(np.arange(len(blocks)), [len(scores) for scores in blocks])

    def counts(self, keep: float, mix: float) -> list[int]:
        """Members kept in each block: the best `keep` of all by a mix of rank within the block and rank over all."""
        sizes = [len(scores) for scores in self._blocks]
        total = max(1, round(keep * sum(sizes)))
        merged = (1 - mix) * self._within + (mix + 1e-6) * self._over_all  # no ties
        top = np.argpartition(-merged, total - 1)[:total]
        found = np.bincount(self._owner[top], minlength=len(sizes))
        return [self._rounded(int(n), size) for n, size in zip(found, sizes, strict=True)]

    def members(self, keep: float, mix: float) -> list[tuple[int, ...]]:
        chosen = []
        for scores, count in zip(self._blocks, self.counts(keep, mix), strict=True):
            chosen.append(tuple(int(i) for i in np.sort(np.argsort(-scores, kind="stable")[:count])))
        return chosen

    def _rounded(self, count: int, size: int) -> int:
        return size if count == size else min(size, max(self._least, self._multiple * round(count / self._multiple)))


def _ranks(scores: Array) -> Array:
    """Ranks in (0, 1], the best 1; ties by index."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = 1 - np.arange(len(scores)) / len(scores)
    return ranks
