"""One block: its attention, its MLP, its token reduction, and the operations that they consist of. Standard library only."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from models.record import Record, later
from models.structure.op import Op

Layer = Literal["qkv", "proj", "fc1", "fc2"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
"""The linear layers of a block: what is quantised in an int8 network. All that make q, k and v count as one."""


@dataclass(frozen=True)
class Attention(Record):
    """heads x (qk_dim, v_dim), read from `inputs` dims; `proj_inputs` of the heads' outputs reach the projection."""

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
    """Key tokens after a key/value reduction; None: as many as queries."""
    layers: tuple[str, ...] = later(("qkv",))
    """The linear layers that make q, k and v: one of all three, or ("q", "kv"), or ("q", "k", "v")."""
    window: int | None = later(None)
    """Tokens of one window with its padding; None: the tokens divided by the windows."""
    table: int = later(0)
    """Learned values per head that are added to the logits (relative positions)."""
    reduction: tuple[Op, ...] = later(())
    """Operations between the block's tokens and its keys (PVT's strided convolution and norm)."""
    parts: tuple[Op, ...] = later(())
    """Of an attention that was found in a graph (models/graph): all operations that its heads take part in, for one head."""


@dataclass(frozen=True)
class Mlp(Record):
    inputs: int
    neurons: int
    bias: bool = True
    gated: bool = False
    between: tuple[Op, ...] = later(())
    """Operations between fc1 and the activation that belong to the neurons, written for one neuron (depthwise
    convolution)."""
    parts: tuple[Op, ...] = later(())
    """Of an MLP that was found in a graph: all operations that its neurons take part in, for one neuron; and whatever else sees
    the tokens that the block leaves, up to the next block's reduction."""


Reducer = Literal["drop", "fuse", "weighted", "merge"]
"""What becomes of the tokens that are not kept: nothing, one package token (their mean, or their mean by score), or each
is merged into the most similar one that stays."""
PACKAGING: tuple[Reducer, ...] = ("fuse", "weighted")
IN_GRAPH: tuple[Reducer, ...] = ("drop", "fuse", "weighted")
"""Those that a stage allows which is `in_graph`."""
ReductionPoint = Literal["start", "middle"]
"""Before a block's attention, or between its attention and its MLP."""


@dataclass(frozen=True)
class Selector(Record):
    """SPViT's learned scores of `patches` patch tokens, whose width is split into `heads`."""

    patches: int
    heads: int


@dataclass(frozen=True)
class Reduction(Record):
    """Of the patch tokens that enter, `kept` leave one by one, and with some reducers a package of the others."""

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
    """norm, attention, residual, [token reduction], norm, MLP, residual. A missing half costs nothing."""

    name: str
    width: int
    tokens: int
    attention: Attention | None
    mlp: Mlp | None
    reduction: Reduction | None = None
    layer_scale: bool = False
    precision: str = "fp32"
    """int8: its linear layers are; everything else stays in fp32. fp16: everything is."""
    exact: tuple[Layer, ...] = later(())
    """Of an int8 block: the layers that stay in fp32."""

    @property
    def tokens_out(self) -> int:
        return self.reduction.tokens_out if self.reduction else self.tokens

    @property
    def tokens_attended(self) -> int:
        """Tokens that the attention sees."""
        return self.tokens_out if self.reduction and self.reduction.at == "start" else self.tokens

    def ops(self) -> tuple[Op, ...]:
        return _block_ops(self)


Quantity = Literal["macs", "params", "weight_bytes"]


@functools.lru_cache(maxsize=65536)
def block_total(block: Block, quantity: Quantity) -> int:
    return sum(getattr(op, quantity) for op in _block_ops(block))


@functools.lru_cache(maxsize=65536)
def _block_ops(block: Block) -> tuple[Op, ...]:
    """Blocks repeat across policies: caching by value makes pricing cheap."""
    return block_ops(block)


def block_ops(block: Block) -> tuple[Op, ...]:
    """Its operations in order. Sizes may be arrays, of many blocks alike (latency/prediction/features.py)."""
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
        yield from (part.of_members(shape.heads).of_tokens(block.tokens_attended) for part in shape.parts)
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
    yield from shape.reduction
    for layer in shape.layers:
        columns = heads * sum(shape.v_dim if part == "v" else shape.qk_dim for part in layer)
        rows = inside if "q" in layer else shape.windows * keys
        yield Op("matmul", f"{name}.{layer}", rows, columns, inner=shape.inputs, weights=True, bias=shape.bias)
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
        "attention", f"{name}.attention", window, keys, inner=shape.qk_dim, depth=shape.v_dim,
        count=heads * shape.windows,
    )  # fmt: skip
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
        yield from (part.of_members(shape.neurons).of_tokens(block.tokens_out) for part in shape.parts)
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
    """Of a token selector: channels per head, their half and quarter, and half of the heads."""
    dim = width // heads
    return dim, max(1, dim // 2), max(1, dim // 4), max(1, heads // 2)


def _selector_ops(block: Block, shape: Selector) -> Iterator[Op]:
    """Per token and head: feature, then a vote; per token: the weights of the heads. See models/pruning/token_selector.py."""
    name, rows = f"{block.name}.selector", shape.patches * shape.heads
    dim, half, quarter, few = selector_dims(block.width, shape.heads)

    def linear(part: str, lines: int, inner: int, cols: int, bias: bool = True) -> Iterator[Op]:
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
