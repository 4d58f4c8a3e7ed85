"""One transformer block: its attention, MLP and token reduction, and the operations of each. Standard library only."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from models.record import Record, later
from models.structure.op import Op

Layer = Literal["qkv", "proj", "fc1", "fc2"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
"""The linear layers of a block. An int8 network quantises these. All layers that make q, k and v count as one."""


@dataclass(frozen=True)
class Attention(Record):
    """The sizes of one attention.

    It has `heads` heads with `qk_dim` q/k dims and `v_dim` v dims each. The q/k/v layers read `inputs` dims of the
    residual stream. The projection reads `proj_inputs` of the heads' heads x v_dim outputs.
    """

    heads: int
    qk_dim: int
    v_dim: int
    inputs: int
    proj_inputs: int
    bias: bool = True
    proj_bias: bool = True
    qk_norm: Literal["none", "shared", "per-head"] = "none"
    windows: int = 1
    keys: int | None = None
    """Number of key tokens after a key/value reduction. None: as many keys as queries."""
    layers: tuple[str, ...] = later(("qkv",))
    """The linear layers that make q, k and v: one layer for all three, or ("q", "kv"), or ("q", "k", "v")."""
    window: int | None = later(None)
    """Number of tokens of one window, padding included. None: the token count divided by the number of windows."""
    table: int = later(0)
    """Number of learned values per head that are added to the attention logits (relative positions)."""
    reduction: tuple[Op, ...] = later(())
    """Operations between the block's tokens and its keys (PVT's strided convolution and norm)."""
    key_inputs: int | None = later(None)
    """Number of dims that the layers behind the `reduction` read. None: as many as `inputs`."""
    parts: tuple[Op, ...] = later(())
    """For an attention that was found in a graph (models/graph): every operation in which its heads take part, with the
    sizes of one head. Sizes that depend on its q/k or v dims are given for one dim if these dims can be cut. Empty for
    a known architecture."""


@dataclass(frozen=True)
class Mlp(Record):
    inputs: int
    neurons: int
    bias: bool = True
    gated: bool = False
    between: tuple[Op, ...] = later(())
    """Operations between fc1 and the activation that work on each neuron (depthwise convolution), with the sizes of one
    neuron."""
    parts: tuple[Op, ...] = later(())
    """For an MLP that was found in a graph: every operation in which its neurons take part, with the sizes of one
    neuron. It also lists all other operations on the tokens that leave the block, up to the token reduction of the next
    block."""


Reducer = Literal["drop", "fuse", "weighted", "merge"]
"""What happens to the tokens that are not kept.

drop: they are discarded. fuse: one fused token, their mean, replaces them. weighted: one fused token, their mean
weighted by score, replaces them. merge: each one is merged into the most similar token that stays.
"""
PACKAGING: tuple[Reducer, ...] = ("fuse", "weighted")
IN_GRAPH: tuple[Reducer, ...] = ("drop", "fuse", "weighted")
"""The reducers that a stage with `in_graph` allows."""
ReductionPoint = Literal["start", "middle"]
"""Where tokens are reduced. start: before the attention of a block. middle: between its attention and its MLP."""


@dataclass(frozen=True)
class Selector(Record):
    """SPViT's token selector: it scores `patches` patch tokens, and splits their width into `heads` heads."""

    patches: int
    heads: int


@dataclass(frozen=True)
class Reduction(Record):
    """A token reduction: `kept` patch tokens stay.

    With the reducers in `PACKAGING`, one fused token stands for the others.
    """

    reducer: Reducer
    kept: int
    prefix: int
    at: ReductionPoint = "middle"
    selector: Selector | None = None

    @property
    def tokens_out(self) -> int:
        return self.prefix + self.kept + (1 if self.reducer in PACKAGING else 0)


@dataclass(frozen=True)
class Block(Record):
    """norm, attention, residual, [token reduction], norm, MLP, residual. A removed sublayer has no operations."""

    name: str
    width: int
    tokens: int
    attention: Attention | None
    mlp: Mlp | None
    reduction: Reduction | None = None
    layer_scale: bool = False
    precision: str = "fp32"
    """int8: the linear layers are int8 and everything else stays in fp32. fp16: everything is fp16."""
    exact: tuple[Layer, ...] = later(())
    """The linear layers that stay in fp32 although the block is int8."""

    @property
    def tokens_out(self) -> int:
        return self.reduction.tokens_out if self.reduction else self.tokens

    @property
    def tokens_attended(self) -> int:
        """Number of tokens that the attention processes."""
        return self.tokens_out if self.reduction and self.reduction.at == "start" else self.tokens

    def ops(self) -> tuple[Op, ...]:
        return _block_ops(self)


Quantity = Literal["macs", "params", "weight_bytes"]


@functools.lru_cache(maxsize=65536)
def block_total(block: Block, quantity: Quantity) -> int:
    return sum(getattr(op, quantity) for op in _block_ops(block))


@functools.lru_cache(maxsize=65536)
def _block_ops(block: Block) -> tuple[Op, ...]:
    """Return the operations of a block, cached by value: many policies share equal blocks, so pricing becomes cheap."""
    return block_ops(block)


def block_ops(block: Block) -> tuple[Op, ...]:
    """Return the operations of a block in execution order.

    Sizes may also be arrays, one value for each of many similar blocks (latency/prediction/features.py).
    """
    ops: list[Op] = []
    if block.attention:
        ops += _attention_ops(block, block.attention)
    if block.reduction and block.reduction.selector:
        ops += _selector_ops(block, block.reduction.selector)
    if block.reduction:
        ops.append(Op("reduce", f"{block.name}.reduce", block.tokens, block.width, inner=block.tokens_out))
    if block.mlp:
        ops += _mlp_ops(block, block.mlp)
    if block.precision == "fp32":
        return tuple(ops)
    return tuple(dataclasses.replace(op, precision=_precision_of(op, block)) for op in ops)


def _precision_of(op: Op, block: Block) -> str:
    if block.precision != "int8":
        return block.precision
    made = block.attention.layers if block.attention else ()
    layer = op.name.rpartition(".")[2]
    layer = "qkv" if layer in made else layer
    return "int8" if op.kind == "matmul" and layer in LAYERS and layer not in block.exact else "fp32"


def _attention_ops(block: Block, shape: Attention) -> Iterator[Op]:
    if shape.parts:
        parts = (part.of_width(block.width).of_dims(shape.qk_dim, shape.v_dim) for part in shape.parts)
        yield from (part.of_members(shape.heads).of_tokens(block.tokens_attended) for part in parts)
        return
    name, tokens, heads = block.name, block.tokens_attended, shape.heads
    window = shape.window or tokens // shape.windows
    keys = shape.keys or window
    inside = tokens if shape.window is None else shape.windows * window
    yield Op("norm", f"{name}.norm1", tokens, block.width, weights=True, bias=True)
    if shape.inputs < block.width:
        yield Op("gather", f"{name}.qkv_gather", tokens, shape.inputs)
    if shape.windows > 1:
        yield Op("move", f"{name}.windows", inside, block.width)
    yield from (op.of_width(block.width) for op in shape.reduction)
    for layer in shape.layers:
        columns = heads * sum(shape.v_dim if part == "v" else shape.qk_dim for part in layer)
        rows = inside if "q" in layer else shape.windows * keys
        inner = shape.inputs if "q" in layer or shape.key_inputs is None else shape.key_inputs
        yield Op("matmul", f"{name}.{layer}", rows, columns, inner=inner, weights=True, bias=shape.bias)
    if shape.qk_norm != "none":
        tables = heads if shape.qk_norm == "per-head" else 1
        for side in "qk":
            yield Op(
                "norm",
                f"{name}.{side}_norm",
                tokens * heads // tables,
                shape.qk_dim,
                count=tables,
                weights=True,
                bias=True,
            )
    if shape.table:
        yield Op("table", f"{name}.positions", shape.table, heads, weights=True)
        yield Op("add", f"{name}.add_positions", window, keys, count=heads * shape.windows)
    yield Op(
        "attention",
        f"{name}.attention",
        window,
        keys,
        inner=shape.qk_dim,
        depth=shape.v_dim,
        count=heads * shape.windows,
    )
    if shape.proj_inputs < heads * shape.v_dim:
        yield Op("gather", f"{name}.proj_gather", tokens, shape.proj_inputs)
    yield Op("matmul", f"{name}.proj", inside, block.width, inner=shape.proj_inputs, weights=True, bias=shape.proj_bias)
    if shape.windows > 1:
        yield Op("move", f"{name}.grid", tokens, block.width)
    if block.layer_scale:
        yield Op("scale", f"{name}.scale1", tokens, block.width, weights=True)
    yield Op("add", f"{name}.residual1", tokens, block.width)


def _mlp_ops(block: Block, shape: Mlp) -> Iterator[Op]:
    if shape.parts:
        parts = (part.of_width(block.width).of_members(shape.neurons) for part in shape.parts)
        yield from (part.of_tokens(block.tokens_out) for part in parts)
        return
    name, tokens = block.name, block.tokens_out
    yield Op("norm", f"{name}.norm2", tokens, block.width, weights=True, bias=True)
    if shape.inputs < block.width:
        yield Op("gather", f"{name}.fc1_gather", tokens, shape.inputs)
    columns = shape.neurons * (2 if shape.gated else 1)
    yield Op("matmul", f"{name}.fc1", tokens, columns, inner=shape.inputs, weights=True, bias=shape.bias)
    for op in shape.between:
        neurons: dict[str, int] = {"count" if op.kind == "conv" else "cols": shape.neurons}
        yield dataclasses.replace(op, **neurons)  # type: ignore[arg-type]
    yield Op("activation", f"{name}.activation", tokens, shape.neurons)
    yield Op("matmul", f"{name}.fc2", tokens, block.width, inner=shape.neurons, weights=True, bias=shape.bias)
    if block.layer_scale:
        yield Op("scale", f"{name}.scale2", tokens, block.width, weights=True)
    yield Op("add", f"{name}.residual2", tokens, block.width)


def selector_dims(width: int, heads: int) -> tuple[int, int, int, int]:
    """Return four sizes of a token selector: channels per head, their half, their quarter, and half of the heads."""
    dim = width // heads
    return dim, max(1, dim // 2), max(1, dim // 4), max(1, heads // 2)


def _selector_ops(block: Block, shape: Selector) -> Iterator[Op]:
    """Yield the operations of a token selector (models/pruning/token_selector.py).

    For each token and head it computes a feature and then a vote. For each token it computes the weights of the heads.
    """
    name, rows = f"{block.name}.selector", shape.patches * shape.heads
    dim, half, quarter, few = selector_dims(block.width, shape.heads)

    def linear(part: str, lines: int, inner: int, cols: int, *, bias: bool = True) -> Iterator[Op]:
        yield Op("matmul", f"{name}.{part}", lines, cols, inner=inner, weights=True, bias=bias)
        if bias:
            yield Op("activation", f"{name}.{part}_activation", lines, cols)

    yield Op("norm", f"{name}.norm", rows, dim, weights=True, bias=True)
    yield from linear("feature", rows, dim, half)
    yield Op("pool", f"{name}.mean", rows, half)
    yield from linear("everywhere", shape.heads, half, half, bias=False)
    yield from linear("local", rows, half, half)
    yield from linear("middle", rows, half, quarter)
    yield from linear("vote", rows, quarter, 2)
    yield Op("pool", f"{name}.channels", shape.patches, block.width)
    yield from linear("squeeze", shape.patches, shape.heads, few)
    yield from linear("weigh", shape.patches, few, shape.heads)
