"""What stays of a network, member by member. Standard library only.

All indices are those of the original network, so a plan is read beside it and plans compose by inspection.
`plan.apply_to(structure)` is arithmetic; `models.prune` does the same to weights, and a test holds the two together.
"""

import bisect
import dataclasses
from dataclasses import dataclass
from typing import Literal

from models.errors import InvalidRequest
from models.record import Record, later
from models.structure import (
    IN_GRAPH,
    LAYERS,
    PACKAGING,
    Attention,
    Axis,
    Block,
    Layer,
    Mlp,
    Op,
    Place,
    Precision,
    Reducer,
    Reduction,
    Selector,
    Stage,
    Structure,
)

PlanAxis = Literal["heads", "neurons", "tokens", "embed", "blocks", "inputs", "precision"]
"""Heads with their q/k and v dims are one axis here; so are the inputs that q/k/v, the projection and fc1 gather."""
TokenScore = Literal["attention", "cumulative", "similarity", "selector"]


@dataclass(frozen=True)
class HeadPlan(Record):
    """One output head: its q/k dims and v dims, as flat indices (head x head_dim + dim) into the source's heads."""

    qk: tuple[int, ...]
    v: tuple[int, ...]


@dataclass(frozen=True)
class TokenPlan(Record):
    """Keep the `kept` best patch tokens of each image; which they are is decided for each image as it runs.

    score: what ranks them. attention: of the block just left (start) or the block's own (middle), from the class token,
    or received where there is none. cumulative: CP-ViT's, over all layers so far. similarity: `merge` needs no rank.
    selector: SPViT's, learned, from the tokens themselves.
    """

    kept: int
    reducer: Reducer = "fuse"
    at: Place = "middle"
    score: TokenScore = "attention"


@dataclass(frozen=True)
class BlockPlan(Record):
    """`source` is the block in the original. No heads (neurons): that half of the block is gone. Inputs None: all kept dims."""

    source: int
    heads: tuple[HeadPlan, ...]
    neurons: tuple[int, ...]
    qkv_inputs: tuple[int, ...] | None = None
    proj_inputs: tuple[int, ...] | None = None
    fc1_inputs: tuple[int, ...] | None = None
    tokens: TokenPlan | None = None
    exact: tuple[Layer, ...] = later(())
    """In an int8 plan: the layers that stay in fp32."""


@dataclass(frozen=True)
class Plan(Record):
    """embed: the embedding dims that stay, everywhere; empty where the structure's width is fixed: all of them stay.
    precision: "int8" quantises the linear layers of all blocks, but for those that are `exact`; "fp16" is of everything."""

    embed: tuple[int, ...]
    blocks: tuple[BlockPlan, ...]
    precision: Precision = "fp32"

    def apply_to(self, structure: Structure) -> Structure:
        """The structure of the network that this plan leaves.

        Raises: InvalidRequest when the plan does not fit (unknown member, unequal dims inside a block, no width left).
        """
        check(self, structure)
        return self.shape_of(structure)

    def shape_of(self, structure: Structure) -> Structure:
        """`apply_to` without its checks: only lengths are read, so a plan of counts can be priced by the thousand."""
        originals, firsts, kept, tokens = structure.blocks, structure.first_blocks, [], structure.tokens
        stage, patches = -1, structure.tokens - structure.prefix
        for plan in self.blocks:
            original = originals[plan.source]
            if (now := bisect.bisect(firsts, plan.source)) != stage:
                stage = now
                if not structure.stages[stage - 1].follows:
                    tokens, patches = original.tokens, original.tokens - structure.prefix
            width = len(self.embed) or original.width
            block = _apply_block(plan, original, width, tokens, structure.prefix, self.precision)
            if plan.tokens is not None:
                block = _with_selector(block, plan.tokens, original, patches)
                patches = plan.tokens.kept
            tokens = block.tokens_out
            kept.append(block)
        width = len(self.embed) or structure.width
        small = dataclasses.replace(
            structure,
            stem=tuple(_resize(op, width, structure.tokens) for op in structure.stem),
            stages=_regroup(structure, self, kept),
            tail=tuple(_resize(op, width, tokens) for op in structure.tail),
        )
        return small.in_precision("fp16") if self.precision == "fp16" else small

    def only(self, axis: PlanAxis, structure: Structure) -> "Plan":
        """The part of this plan that concerns one axis; everything else as in the original. For accounts per axis."""
        dense = identity(structure)
        blocks = []
        for plan in self.blocks if axis == "blocks" else dense.blocks:
            mine = next((b for b in self.blocks if b.source == plan.source), None)
            blocks.append(_only_axis(axis, dense.blocks[plan.source], mine))
        precision: Precision = self.precision if axis == "precision" else "fp32"
        return Plan(self.embed if axis == "embed" else dense.embed, tuple(blocks), precision)


def identity(structure: Structure) -> Plan:
    """The plan that removes nothing."""
    embed = () if "embed" in structure.fixed else tuple(range(structure.width))
    return Plan(embed, tuple(_whole(i, b) for i, b in enumerate(structure.blocks)))


def _whole(source: int, block: Block) -> BlockPlan:
    heads: tuple[HeadPlan, ...] = ()
    if block.attention:
        a = block.attention
        heads = tuple(
            HeadPlan(tuple(range(h * a.qk_dim, (h + 1) * a.qk_dim)), tuple(range(h * a.v_dim, (h + 1) * a.v_dim)))
            for h in range(a.heads)
        )
    return BlockPlan(source, heads, tuple(range(block.mlp.neurons)) if block.mlp else ())


def _only_axis(axis: PlanAxis, dense: BlockPlan, mine: BlockPlan | None) -> BlockPlan:
    if mine is None or axis in ("embed", "blocks"):
        return dense
    if axis == "heads":
        return dataclasses.replace(dense, heads=mine.heads)
    if axis == "inputs":
        return dataclasses.replace(
            dense, qkv_inputs=mine.qkv_inputs, proj_inputs=mine.proj_inputs, fc1_inputs=mine.fc1_inputs
        )
    if axis == "neurons":
        return dataclasses.replace(dense, neurons=mine.neurons)
    if axis == "precision":
        return dataclasses.replace(dense, exact=mine.exact)
    return dataclasses.replace(dense, tokens=mine.tokens)


def check(plan: Plan, structure: Structure) -> None:
    """Raises: InvalidRequest naming the block, the value and what is allowed."""
    _check_embed(plan, structure)
    if not plan.blocks:
        raise InvalidRequest("A plan must keep at least one block; this one keeps none")
    originals, patches = structure.blocks, structure.tokens - structure.prefix
    firsts, stage = structure.first_blocks, -1
    free = [stage.free_tokens for stage in structure.stages for _ in stage.blocks]
    for block in plan.blocks:
        if not 0 <= block.source < len(originals):
            raise InvalidRequest(
                f"Block {block.source} does not exist; the network has blocks 0 to {len(originals) - 1}"
            )
        if (now := bisect.bisect(firsts, block.source)) != stage:
            stage = now
            if not structure.stages[stage - 1].follows:
                patches = originals[block.source].tokens - structure.prefix
        if block.tokens is not None and not free[block.source]:
            raise InvalidRequest(
                f"{originals[block.source].name}: its tokens cannot be reduced, a later layer needs their grid. "
                f"Blocks whose tokens are free: {', '.join(str(i) for i, f in enumerate(free) if f) or 'none'}"
            )
        if block.tokens is not None and structure.stages[stage - 1].in_graph:
            _check_in_graph(block.tokens, originals[block.source].name)
        _check_fixed(block, originals[block.source], structure.fixed)
        _check_exact(block, originals[block.source].name, plan.precision)
        patches = _check_block(block, originals[block.source], plan, patches)
    _check_scores(plan, firsts)
    sources = [block.source for block in plan.blocks]
    if sources != sorted(set(sources)):
        raise InvalidRequest(f"Blocks must keep their order and appear once; got sources {sources}")


def _check_in_graph(tokens: TokenPlan, name: str) -> None:
    if tokens.at != "middle" or tokens.score != "attention" or tokens.reducer not in IN_GRAPH:
        raise InvalidRequest(
            f"{name}: tokens of a model that goes by its graph leave in the middle of a block, by its attention and by reducer "
            f"{', '.join(IN_GRAPH)}; not {tokens.reducer} at the {tokens.at} by {tokens.score}"
        )


def _check_embed(plan: Plan, structure: Structure) -> None:
    if "embed" not in structure.fixed:
        _check_members("embed", plan.embed, structure.width, "the network")
    elif plan.embed:
        widths = list(dict.fromkeys(block.width for block in structure.blocks))
        raise InvalidRequest(
            f"The embedding width of {structure.name} ({', '.join(map(str, widths))}) cannot be cut; leave embed empty"
        )


def _check_fixed(plan: BlockPlan, block: Block, fixed: tuple[Axis, ...]) -> None:
    inputs = (plan.qkv_inputs, plan.proj_inputs, plan.fc1_inputs)
    if "inputs" in fixed and inputs != (None, None, None):
        raise InvalidRequest(f"{block.name}: inputs of single layers cannot be cut in this architecture")
    if "halves" in fixed and not (plan.heads and plan.neurons):
        raise InvalidRequest(f"{block.name}: attention or MLP alone cannot go in this architecture; drop the block")
    if block.attention is None or not ({"qk", "v"} & set(fixed)):
        return
    whole = {HeadPlan(h.qk, h.v) for h in _whole(plan.source, block).heads}
    if not set(plan.heads) <= whole:
        raise InvalidRequest(
            f"{block.name}: only whole heads can go in this architecture, not dims inside heads "
            f"({block.attention.qk_dim} q/k and {block.attention.v_dim} v dims each)"
        )


def _check_exact(plan: BlockPlan, name: str, precision: str) -> None:
    if plan.exact and precision != "int8":
        raise InvalidRequest(f"{name}: layers are left exact in an int8 plan only; this one is {precision}")
    if unknown := sorted(set(plan.exact) - set(LAYERS)):
        raise InvalidRequest(f"{name}: there is no layer {unknown[0]!r} to leave exact; there are {', '.join(LAYERS)}")


def _check_block(plan: BlockPlan, block: Block, whole: Plan, patches: int) -> int:
    if plan.heads and block.attention:
        a = block.attention
        if len({(len(h.qk), len(h.v)) for h in plan.heads}) > 1:
            raise InvalidRequest(
                f"{block.name}: all heads of a block must keep the same number of dims (one fused product)"
            )
        for head in plan.heads:
            _check_members("q/k dim", head.qk, a.heads * a.qk_dim, block.name)
            _check_members("v dim", head.v, a.heads * a.v_dim, block.name)
        if plan.proj_inputs is not None:
            _check_subset("proj input", plan.proj_inputs, {i for h in plan.heads for i in h.v}, block.name)
    if plan.neurons and block.mlp:
        _check_members("neuron", plan.neurons, block.mlp.neurons, block.name)
    for label, inputs in (("q/k/v input", plan.qkv_inputs), ("fc1 input", plan.fc1_inputs)):
        if inputs is not None:
            _check_subset(label, inputs, set(whole.embed) or set(range(block.width)), block.name)
    if plan.tokens is None:
        return patches
    if not 1 <= plan.tokens.kept < patches:
        raise InvalidRequest(
            f"{block.name}: a reduction can keep 1 to {patches - 1} patch tokens, not {plan.tokens.kept}"
        )
    if (plan.tokens.reducer == "merge") != (plan.tokens.score == "similarity"):
        raise InvalidRequest(f"{block.name}: reducer 'merge' goes with score 'similarity', the others with a rank")
    if plan.tokens.reducer == "merge" and block.attention is not None and block.attention.table:
        raise InvalidRequest(
            f"{block.name}: merged tokens have no place for its relative positions; use another reducer"
        )
    return plan.tokens.kept


def _check_scores(plan: Plan, firsts: tuple[int, ...] = (0,)) -> None:
    """A reduction needs an attention to rank by, and packages and merges count tokens in different ways."""
    scored, stage = False, -1
    for block in plan.blocks:
        tokens = block.tokens
        if (now := bisect.bisect(firsts, block.source)) != stage:
            scored, stage = False, now  # other tokens: attention to the old ones says nothing
        if tokens is not None and tokens.score == "selector":
            continue  # it reads the tokens, not an attention
        at = None if tokens is None else tokens.at
        spent = tokens is not None and tokens.score != "cumulative"  # only a sum over layers outlives a choice
        if at == "start":
            if not scored:
                raise InvalidRequest(
                    f"Block {block.source} cannot choose tokens at its start: no attention before it that was not used up by "
                    "an earlier choice; choose in its middle, or by the cumulative score"
                )
            scored = not spent
        scored = scored or bool(block.heads)
        if at == "middle":
            if not block.heads:
                raise InvalidRequest(f"Block {block.source} cannot choose tokens: its attention is removed")
            scored = not spent
    if len({block.tokens.score for block in plan.blocks if block.tokens is not None}) > 1:
        raise InvalidRequest("All token reductions of a plan must use the same score")
    reducers = {block.tokens.reducer for block in plan.blocks if block.tokens is not None}
    if "merge" in reducers and reducers & set(PACKAGING):
        raise InvalidRequest("Reducer 'merge' cannot be mixed with a package token (fuse, weighted) in one plan")


def _check_members(noun: str, members: tuple[int, ...], size: int, where: str) -> None:
    if not members:
        raise InvalidRequest(f"{where}: a plan must keep at least one {noun}")
    if len(set(members)) != len(members) or min(members) < 0 or max(members) >= size:
        raise InvalidRequest(f"{where}: {noun} indices must be distinct and below {size}")


def _check_subset(noun: str, members: tuple[int, ...], allowed: set[int], where: str) -> None:
    if not members or len(set(members)) != len(members) or not set(members) <= allowed:
        raise InvalidRequest(
            f"{where}: {noun} indices must be distinct, at least one, and among those that the plan keeps"
        )


def _apply_block(plan: BlockPlan, block: Block, width: int, tokens: int, prefix: int, precision: str) -> Block:
    reduction = None
    if plan.tokens is not None:
        reduction = Reduction(plan.tokens.reducer, plan.tokens.kept, prefix, plan.tokens.at)
    return Block(
        block.name, width, tokens, _apply_attention(plan, block.attention, width), _apply_mlp(plan, block.mlp, width),
        reduction, block.layer_scale, precision, plan.exact if precision == "int8" else (),
    )  # fmt: skip


def _with_selector(block: Block, tokens: TokenPlan, original: Block, patches: int) -> Block:
    if tokens.score != "selector" or block.reduction is None:
        return block
    selector = Selector(patches, selector_heads(block.width, original))
    return dataclasses.replace(block, reduction=dataclasses.replace(block.reduction, selector=selector))


def selector_heads(width: int, original: Block) -> int:
    """Into how many heads a selector splits the width: the block's own, or the next smaller number that divides it."""
    wanted = original.attention.heads if original.attention else 1
    return next(heads for heads in range(min(wanted, width), 0, -1) if width % heads == 0)


def _apply_attention(plan: BlockPlan, shape: Attention | None, width: int) -> Attention | None:
    if shape is None or not plan.heads:
        return None
    v_dim = len(plan.heads[0].v)
    return dataclasses.replace(
        shape,
        heads=len(plan.heads),
        qk_dim=len(plan.heads[0].qk),
        v_dim=v_dim,
        inputs=width if plan.qkv_inputs is None else len(plan.qkv_inputs),
        proj_inputs=len(plan.heads) * v_dim if plan.proj_inputs is None else len(plan.proj_inputs),
        qk_norm="none" if shape.qk_norm == "none" else "per-head",
    )


def _apply_mlp(plan: BlockPlan, shape: Mlp | None, width: int) -> Mlp | None:
    if shape is None or not plan.neurons:
        return None
    inputs = width if plan.fc1_inputs is None else len(plan.fc1_inputs)
    return dataclasses.replace(shape, inputs=inputs, neurons=len(plan.neurons))


def _resize(op: Op, width: int, tokens: int) -> Op:
    if op.width_field == "cols":
        op = dataclasses.replace(op, cols=width)
    elif op.width_field == "inner":
        op = dataclasses.replace(op, inner=width)
    return dataclasses.replace(op, rows=tokens) if op.rows_are_tokens else op


def _regroup(structure: Structure, plan: Plan, blocks: list[Block]) -> tuple[Stage, ...]:
    by_source = {p.source: b for p, b in zip(plan.blocks, blocks, strict=True)}
    stages, first = [], 0
    for stage in structure.stages:
        members = tuple(by_source[i] for i in range(first, first + len(stage.blocks)) if i in by_source)
        stages.append(dataclasses.replace(stage, blocks=members))
        first += len(stage.blocks)
    return tuple(stages)
