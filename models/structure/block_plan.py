"""The plan of one block (which members stay), and the pruned block that it gives. Standard library only."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from models.record import Record, later
from models.structure.block import Attention, Block, Layer, Mlp, Reducer, Reduction, ReductionPoint, Selector

PlanAxis = Literal["heads", "neurons", "tokens", "embed", "blocks", "inputs", "precision"]
"""The axes of a plan. Heads and their q/k and v dims are one axis; so are the inputs of q/k/v, projection and fc1."""
TokenScore = Literal["attention", "cumulative", "similarity", "selector"]


@dataclass(frozen=True)
class HeadPlan(Record):
    """One head of the pruned block: the q/k dims and v dims that it keeps.

    They are flat indices (head x head_dim + dim) in the original block.
    """

    qk: tuple[int, ...]
    v: tuple[int, ...]


@dataclass(frozen=True)
class TokenPlan(Record):
    """Keep the `kept` best patch tokens of each image. They are chosen at run time, for each image.

    `score` says how tokens are ranked:
    attention: by the attention of the previous block (start) or of this block (middle). It is the attention from the
        class token or, without a class token, the attention that a token receives.
    cumulative: by CP-ViT's score, a sum over all layers so far.
    similarity: for reducer `merge`, which needs no ranking.
    selector: by SPViT's learned score, which reads the tokens.
    """

    kept: int
    reducer: Reducer = "fuse"
    at: ReductionPoint = "middle"
    score: TokenScore = "attention"


@dataclass(frozen=True)
class BlockPlan(Record):
    """The members of block `source` of the original network that stay.

    Empty `heads` removes the attention; empty `neurons` removes the MLP. If the inputs of a layer are None, the layer
    reads all dims that are kept.
    """

    source: int
    heads: tuple[HeadPlan, ...]
    neurons: tuple[int, ...]
    qkv_inputs: tuple[int, ...] | None = None
    proj_inputs: tuple[int, ...] | None = None
    fc1_inputs: tuple[int, ...] | None = None
    tokens: TokenPlan | None = None
    exact: tuple[Layer, ...] = later(())
    """The linear layers that stay in fp32 in an int8 plan."""


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


def apply_block(plan: BlockPlan, block: Block, width: int, tokens: int, *, prefix: int, precision: str) -> Block:
    reduction = None
    if plan.tokens is not None:
        reduction = Reduction(plan.tokens.reducer, plan.tokens.kept, prefix, plan.tokens.at)
    return Block(
        block.name,
        width,
        tokens,
        _apply_attention(plan, block.attention, width),
        _apply_mlp(plan, block.mlp, width),
        reduction,
        block.layer_scale,
        precision,
        plan.exact if precision == "int8" else (),
    )


def with_selector(block: Block, tokens: TokenPlan, original: Block, patches: int) -> Block:
    if tokens.score != "selector" or block.reduction is None:
        return block
    selector = Selector(patches, selector_heads(block.width, original))
    return dataclasses.replace(block, reduction=dataclasses.replace(block.reduction, selector=selector))


def selector_heads(width: int, original: Block) -> int:
    """Return the number of heads of a selector: the block's own, or the next smaller number that divides the width."""
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
