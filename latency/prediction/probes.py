"""Probes: random plans that are measured to fit a latency table. Together they span what any method may ask for.

The plans are random, and different in every block, because each block then tells about sizes that no other block has.
So two dozen probes fix the twenty coefficients of `latency.prediction.features` better than probes along each axis do.
The random numbers are seeded, so a table can be fitted again.
"""

import dataclasses
import random
from collections.abc import Iterator

from models.structure import (
    IN_GRAPH,
    LAYERS,
    Block,
    BlockPlan,
    HeadPlan,
    Plan,
    Precision,
    Reducer,
    Structure,
    TokenPlan,
    TokenScore,
    identity,
)
from models.structure.multiples import DIM_MULTIPLE, EMBED_MULTIPLE, NEURON_MULTIPLE

COUNT = 24
KINDS: tuple[tuple[Reducer, TokenScore] | None, ...] = (
    ("fuse", "attention"),
    None,
    ("drop", "attention"),
    ("fuse", "attention"),
    ("merge", "similarity"),
    None,
    ("weighted", "attention"),
    ("fuse", "attention"),
    ("weighted", "selector"),
    ("drop", "attention"),
)
"""How the probes remove tokens, in turn. None: the probe keeps all tokens."""
WAYS: tuple[tuple[Reducer, TokenScore], ...] = (
    ("weighted", "selector"),
    ("drop", "attention"),
    ("fuse", "attention"),
    ("merge", "similarity"),
)
"""How the probes that remove nothing but tokens do it, in turn."""
LEAST, SPREAD = 0.1, 0.25
"""LEAST: smallest keep ratio. SPREAD: how far the keep ratio of a block may be from that of its probe."""
CYCLE, TOKENS_ALONE, LITTLE = 6, 3, 1
"""Of every six probes, one removes nothing but tokens, and one removes nearly everything. The first shows the cost of
weights that few tokens share, the second the cost that every operation has; none of the other probes shows these."""
WITHOUT_HALF = 0.08
"""Share of the blocks that lose their attention, and share of the blocks that lose their MLP."""


MIXED = 3
"""One in this many int8 probes leaves layers in fp32, each layer with probability one half."""


def probe_plans(structure: Structure, count: int = COUNT, precision: Precision = "fp32") -> Iterator[Plan]:
    """Yield `count` plans. Apart from the precision, they are the same plans in every precision."""
    for number in range(count):
        plan = _Probe(structure, number).plan()
        yield _in_int8(plan, number) if precision == "int8" else dataclasses.replace(plan, precision=precision)


def _in_int8(plan: Plan, number: int) -> Plan:
    draw = random.Random(number)
    chance = 0.5 if number % MIXED == MIXED - 1 else 0.0
    blocks = tuple(
        dataclasses.replace(block, exact=tuple(layer for layer in LAYERS if draw.random() < chance))
        for block in plan.blocks
    )
    return dataclasses.replace(plan, blocks=blocks, precision="int8")


class _Probe:
    def __init__(self, structure: Structure, number: int) -> None:
        self._structure, self._whole = structure, identity(structure)
        self._draw = random.Random(number)
        self._kind = KINDS[number % len(KINDS)]
        self._keep = {a: self._draw.uniform(0.15, 1.0) for a in ("heads", "qk", "v", "neurons", "tokens")}
        self._spread, earliest = SPREAD, 1.0
        free = [stage.free_tokens for stage in structure.stages for _ in stage.blocks]
        if number % CYCLE == TOKENS_ALONE and any(free):
            self._kind = WAYS[number // CYCLE % len(WAYS)]
            self._keep = dict.fromkeys(self._keep, 1.0) | {"tokens": self._draw.uniform(LEAST, 0.4)}
            self._spread, earliest = 0.0, 0.5
        elif number % CYCLE == LITTLE:
            self._keep, self._spread = dict.fromkeys(self._keep, LEAST), 0.15
        if self._kind == ("merge", "similarity") and any(b.attention and b.attention.table for b in structure.blocks):
            self._kind = ("fuse", "attention")  # a merged token has no position in the table
        if self._kind is not None and any(stage.in_graph for stage in structure.stages):
            reducer, _ = self._kind
            self._kind = (reducer if reducer in IN_GRAPH else "fuse", "attention")
        self._embed = self._whole.embed
        if self._embed and number % 3 == 1:
            self._embed = self._some(self._embed, self._draw.uniform(0.3, 0.9), EMBED_MULTIPLE)
        self._gathers = "inputs" not in structure.fixed and number % 5 == 2
        places = [i for i in range(1, len(free)) if free[i]] if self._kind else []
        places = places[: max(1, round(earliest * len(places)))]
        self._places = set(self._draw.sample(places, min(len(places), self._draw.randint(1, 3))))

    def plan(self) -> Plan:
        patches, blocks, structure = 0, [], self._structure
        for plan, block in zip(self._whole.blocks, structure.blocks, strict=True):
            patches = patches or block.tokens - structure.prefix if plan.source in self._places else patches
            tokens = None
            if self._kind is not None and plan.source in self._places and patches > 1:
                patches = max(1, min(patches - 1, round(patches * self._near("tokens"))))
                reducer, score = self._kind
                tokens = TokenPlan(patches, reducer, "start" if score == "selector" else "middle", score)
            blocks.append(dataclasses.replace(self._block(plan, block, tokens is None), tokens=tokens))
        return dataclasses.replace(self._whole, embed=self._embed, blocks=tuple(blocks))

    def _block(self, plan: BlockPlan, block: Block, may_lose_half: bool) -> BlockPlan:
        fixed, sources, neurons = self._structure.fixed, plan.heads, plan.neurons
        if sources:
            q = 1.0 if "qk" in fixed else self._near("qk")
            v = 1.0 if "v" in fixed else self._near("v")
            kept = self._some(tuple(range(len(sources))), self._near("heads"))
            dims = [(_first(sources[h].qk, q, DIM_MULTIPLE), _first(sources[h].v, v, DIM_MULTIPLE)) for h in kept]
            plan = dataclasses.replace(plan, heads=tuple(HeadPlan(*pair) for pair in dims))
        if neurons:
            plan = dataclasses.replace(plan, neurons=_first(neurons, self._near("neurons"), NEURON_MULTIPLE))
        if may_lose_half and "halves" not in fixed and sources and neurons:
            chance = self._draw.random()
            if chance < 2 * WITHOUT_HALF:
                half = "heads" if chance < WITHOUT_HALF else "neurons"
                plan = dataclasses.replace(plan, **{half: ()})  # type: ignore[arg-type]
        return self._with_gathers(plan, block) if self._gathers else plan

    def _with_gathers(self, plan: BlockPlan, block: Block) -> BlockPlan:
        """Let the layers read only some dims of the residual stream, as a network that VTP has pruned does."""
        dims = self._embed or tuple(range(block.width))
        inputs = [self._some(dims, self._draw.uniform(0.3, 0.9)) for _ in range(2)]
        return dataclasses.replace(
            plan,
            qkv_inputs=inputs[0] if plan.heads else None,
            fc1_inputs=inputs[1] if plan.neurons else None,
        )

    def _near(self, axis: str) -> float:
        return min(1.0, max(LEAST, self._keep[axis] + self._draw.uniform(-self._spread, self._spread)))

    def _some(self, members: tuple[int, ...], keep: float, multiple: int = 1) -> tuple[int, ...]:
        return tuple(sorted(self._draw.sample(members, _count(len(members), keep, multiple))))


def _first(members: tuple[int, ...], keep: float, multiple: int) -> tuple[int, ...]:
    """The first members: which ones stay makes no difference to the latency."""
    return members[: _count(len(members), keep, multiple)]


def _count(size: int, keep: float, multiple: int) -> int:
    return min(size, max(min(multiple, size), round(size * keep / multiple) * multiple))
