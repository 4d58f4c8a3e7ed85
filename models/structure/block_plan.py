"""What stays of one block, and the block that this leaves. Standard library only."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from models.record import Record, later
from models.structure.block import Attention, Block, Layer, Mlp, Reducer, Reduction, ReductionPoint, Selector

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
    at: ReductionPoint = "middle"
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


def whole_block(source: int, block: Block) -> BlockPlan:
    heads: tuple[HeadPlan, ...] = ()
    if block.attention:
        a = block.attention
        heads = tuple(
            HeadPlan(tuple(range(h * a.qk_dim, (h + 1) * a.qk_dim)), tuple(range(h * a.v_dim, (h + 1) * a.v_dim)))
            for h in range(a.heads)
        )
    return BlockPlan(source, heads, tuple(range(block.mlp.neurons)) if block.mlp else ())


def only_axis(axis: PlanAxis, dense: BlockPlan, mine: BlockPlan | None) -> BlockPlan:
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


def apply_block(plan: BlockPlan, block: Block, width: int, tokens: int, prefix: int, precision: str) -> Block:
    reduction = None
    if plan.tokens is not None:
        reduction = Reduction(plan.tokens.reducer, plan.tokens.kept, prefix, plan.tokens.at)
    return Block(
        block.name, width, tokens, _apply_attention(plan, block.attention, width), _apply_mlp(plan, block.mlp, width),
        reduction, block.layer_scale, precision, plan.exact if precision == "int8" else (),
    )  # fmt: skip


def with_selector(block: Block, tokens: TokenPlan, original: Block, patches: int) -> Block:
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
