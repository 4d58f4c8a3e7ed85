"""The compact space: between a handful and a dozen numbers for the whole network.

A direction x in [0, 1]^d says how much each dimension is cut in proportion to the others. Along it the policy shrinks
from the whole network (t = 0) over x itself (t = 1) to the smallest network (t = 2):
    keep_i(t) = 1 - a_i(t) * (1 - least_i),   a_i(t) = t x_i / max x  for t <= 1,  max(x_i / max x, t - 1)  above
So every direction ends within every budget that can be met at all (on the way there, mixes fade to 0). The ranking
decides which members are removed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.structure import BlockPlan, HeadPlan, Plan, Structure, TokenPlan, identity
from models.structure.multiples import DIM_MULTIPLE, EMBED_MULTIPLE, NEURON_MULTIPLE, to_multiple
from search.policy import Policy
from search.ranking import Array, Ranking
from search.spaces.best_members import best
from search.spaces.directions import amounts, analytic_starts, canonical
from search.spaces.pool import Pool
from search.spaces.sublayers import Halves
from search.token_rule import TokenRule

LEAST = {"heads": 0.15, "qk": 0.25, "v": 0.25, "neurons": 0.1, "tokens": 0.25, "embed": 0.25, "halves": 0.5}
"""Smallest keep ratio in the search: below it, nothing is left from which the network could recover."""
LEAST_ROTATED = {"qk": 0.125, "v": 0.125, "embed": 0.25}
"""Smallest keep ratio of an axis in a rotated basis."""


class CompactSpace:
    """A few keep ratios for the whole network. The ranking turns them into numbers for each block."""

    def __init__(
        self, structure: Structure, ranking: Ranking, axes: Sequence[str], tokens: TokenRule | None = None
    ) -> None:
        """axes: those that may shrink. "tokens" also needs a token grid that may shrink; "embed" and "halves" (whole
        sublayers) also need scores in the ranking."""
        self._rule = tokens or TokenRule()
        self.structure, self.ranking = structure, ranking
        self._identity = identity(structure)
        self._stages = self._rule.stages(structure) if "tokens" in axes else ()
        self.keeps = [a for a in ("heads", "qk", "v", "neurons") if a in axes and a not in structure.fixed]
        self.keeps += [f"tokens{i}" for i in range(len(self._stages))]
        self._dims_of_streams = structure.stream_dims
        self._embed = ranking.embed if "embed" in axes and self._dims_of_streams else None
        self._halves = _halves(structure, ranking) if "halves" in axes else None
        streams = len(self._dims_of_streams)
        widths = ["embed"] if streams == 1 else [f"embed{i}" for i in range(streams)]
        self.keeps += widths if self._embed is not None else []
        self.keeps += ["halves"] if self._halves is not None else []
        self.mixes = [f"{a}_mix" for a in ("heads", "neurons") if a in axes] if ranking.across_blocks else []
        self._heads = Pool([b.heads for b in ranking.blocks], least=1)
        self._neurons = Pool([b.neurons for b in ranking.blocks], least=NEURON_MULTIPLE, multiple=NEURON_MULTIPLE)

    @property
    def dimensions(self) -> list[str]:
        return self.keeps + self.mixes

    def along(self, direction: Sequence[float], t: float) -> Policy:
        """The policy at t in [0, 2] along a direction (formula in the docstring of this module)."""
        values: dict[str, Any] = {}
        for name, amount in zip(self.keeps, amounts(direction[: len(self.keeps)], t, self._kinds), strict=True):
            least = self._least(name)
            values[name] = float(1 - amount * (1 - least))
        tokens = tuple(values.pop(name) for name in self.keeps if name.startswith("tokens"))
        values["embed_by_stage"] = tuple(values.pop(name) for name in self.keeps if _kind(name) == "embed" != name)
        fade = min(1.0, 2 - t)  # every direction ends in the same smallest network
        for name, x in zip(self.mixes, direction[len(self.keeps) :], strict=True):
            values[name] = fade * float(x)
        return Policy(tokens=tokens, **values)

    def _least(self, name: str) -> float:
        kind = _kind(name)
        return LEAST_ROTATED[kind] if kind in self.ranking.rotated else LEAST[kind]

    @property
    def _kinds(self) -> list[str]:
        rotated = {"embed": "rotated_embed"} if "embed" in self.ranking.rotated else {}
        return [rotated.get(kind, kind) for kind in map(_kind, self.keeps)]

    def canonical(self, points: Array) -> Array:
        return canonical(points, self._kinds)

    def starts(self) -> list[list[float]]:
        """The analytic directions that cut at least one axis of this space."""
        return analytic_starts(self._kinds, self.mixes, bool(self.ranking.rotated))

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        """Let the neurons grow: heads and tokens change in coarse steps, and neurons use up what the last step left."""
        if "neurons" not in self.keeps:
            return [policy]
        shares = (np.linspace(0.0, 1.0, steps + 1) ** 2).tolist()  # the first steps are small, because little is left
        if policy.neurons_by_block:
            return [
                dataclasses.replace(policy, neurons_by_block=tuple(k + (1 - k) * s for k in policy.neurons_by_block))
                for s in shares
            ]
        return [dataclasses.replace(policy, neurons=policy.neurons + (1 - policy.neurons) * s) for s in shares]

    def by_block(self, policy: Policy) -> Policy | None:
        scores = self.ranking.blocks
        dims = [self._dims(i, policy) for i in range(len(scores))]
        kept = {
            "heads": [(count, len(one.heads)) for count, one in zip(self._head_counts(policy), scores, strict=True)],
            "neurons": [
                (count, len(one.neurons)) for count, one in zip(self._neuron_counts(policy), scores, strict=True)
            ],
            "qk": [(qk, one.qk.shape[1]) for (qk, _), one in zip(dims, scores, strict=True)],
            "v": [(v, one.v.shape[1]) for (_, v), one in zip(dims, scores, strict=True)],
        }
        rows: dict[str, tuple[float, ...]] = {}
        for axis in (axis for axis in kept if axis in self.keeps):
            row = getattr(policy, f"{axis}_by_block") or [count / size for count, size in kept[axis]]
            rows[f"{axis}_by_block"] = tuple(max(self._least(axis), keep) for keep in row)
        tokens = tuple(max(LEAST["tokens"], keep) for keep in policy.tokens)
        widths = tuple(max(self._least("embed"), share) for share in self._width_shares(policy))
        rows["embed_by_stage"] = widths if len(widths) > 1 else ()
        embed = widths[0] if len(widths) == 1 else 1.0
        return dataclasses.replace(policy, tokens=tokens, embed=embed, **rows)  # type: ignore[arg-type]

    def sketch(self, policy: Policy) -> Structure:
        heads, neurons = self._head_counts(policy), self._neuron_counts(policy)
        kept = self._tokens_kept(policy)
        blocks = []
        for i in range(len(self.structure.blocks)):
            qk, v = self._dims(i, policy)
            thin = HeadPlan(range(qk), range(v))  # type: ignore[arg-type]
            blocks.append(BlockPlan(i, (thin,) * heads[i], range(neurons[i]), tokens=kept.get(i)))  # type: ignore[arg-type]
        whole = dataclasses.replace(self._identity, blocks=tuple(blocks))
        embed = self._identity.embed
        if self._embed is not None:
            counts = zip(self._dims_of_streams, self._widths(policy), strict=True)
            embed = tuple(dim for dims, count in counts for dim in dims[:count])
        return self._shallower(whole, policy, embed).shape_of(self.structure)

    def plan(self, policy: Policy) -> Plan:
        """The plan of a policy. In each axis, the members that the ranking scores best stay."""
        heads = self._heads.members(self._head_counts(policy))
        neurons = self._neurons.members(self._neuron_counts(policy))
        kept = self._tokens_kept(policy)
        blocks = []
        for i, scores in enumerate(self.ranking.blocks):
            qk, v = self._dims(i, policy)
            thin = tuple(HeadPlan(_best_dims(scores.qk, h, qk), _best_dims(scores.v, h, v)) for h in heads[i])
            blocks.append(BlockPlan(i, thin, neurons[i], tokens=kept.get(i)))
        embed = self._identity.embed
        if self._embed is not None:
            counts = zip(self._dims_of_streams, self._widths(policy), strict=True)
            chosen = [(dims, best(self._embed[dims.start : dims.stop], count)) for dims, count in counts]
            embed = tuple(dims.start + dim for dims, some in chosen for dim in some)
        whole = dataclasses.replace(self._identity, blocks=tuple(blocks), rotated=self.ranking.rotated)
        return self._shallower(whole, policy, embed)

    def _width_shares(self, policy: Policy) -> tuple[float, ...]:
        """Share of the embedding dims kept in each stream whose width may be cut."""
        if self._embed is None:
            return ()
        streams = len(self._dims_of_streams)
        return (policy.embed,) if streams == 1 else policy.embed_by_stage or (1.0,) * streams

    def _widths(self, policy: Policy) -> list[int]:
        """Number of embedding dims kept in each of these streams."""
        pairs = zip(self._dims_of_streams, self._width_shares(policy), strict=True)
        return [to_multiple(share * len(dims), len(dims), EMBED_MULTIPLE) for dims, share in pairs]

    def _shallower(self, plan: Plan, policy: Policy, embed: tuple[int, ...]) -> Plan:
        plan = dataclasses.replace(plan, embed=embed)
        return plan if self._halves is None else self._halves.removed_from(plan, policy.halves)

    def _head_counts(self, policy: Policy) -> list[int]:
        if policy.heads_by_block:
            return self._heads.counts_by_block(policy.heads_by_block)
        return self._heads.counts(policy.heads, policy.heads_mix)

    def _neuron_counts(self, policy: Policy) -> list[int]:
        if policy.neurons_by_block:
            return self._neurons.counts_by_block(policy.neurons_by_block)
        return self._neurons.counts(policy.neurons, policy.neurons_mix)

    def _dims(self, block: int, policy: Policy) -> tuple[int, int]:
        scores = self.ranking.blocks[block]
        qk, v = scores.qk.shape[1], scores.v.shape[1]
        qk_keep = policy.qk_by_block[block] if policy.qk_by_block else policy.qk
        v_keep = policy.v_by_block[block] if policy.v_by_block else policy.v
        return to_multiple(qk_keep * qk, qk, DIM_MULTIPLE), to_multiple(v_keep * v, v, DIM_MULTIPLE)

    def _tokens_kept(self, policy: Policy) -> dict[int, TokenPlan]:
        kept: dict[int, TokenPlan] = {}
        if not self._stages:
            return kept
        patches = self.structure.blocks[self._stages[0]].tokens - self.structure.prefix  # only one grid may shrink
        for block, keep in zip(self._stages, policy.tokens, strict=False):
            count = max(1, round(patches * keep))
            if count < patches:
                kept[block] = self._rule.plan(count)
                patches = count
        return kept


def _kind(name: str) -> str:
    """The axis of a dimension: that of "tokens0" is "tokens"."""
    return name.rstrip("0123456789")


def _halves(structure: Structure, ranking: Ranking) -> Halves | None:
    scores = [block.halves for block in ranking.blocks if block.halves is not None and "halves" not in structure.fixed]
    return Halves(structure, scores) if len(scores) == len(structure.blocks) and ranking.across_blocks else None


def _best_dims(scores: Array, head: int, count: int) -> tuple[int, ...]:
    """Flat indices of the best dims of one head. scores (H, d)."""
    return tuple(head * scores.shape[1] + dim for dim in best(scores[head], count))
