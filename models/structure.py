"""The shape of a network without its weights. Standard library only.

A `Structure` is stages of blocks, down to `Op`s. Everything that can be counted (MACs, parameters, bytes, milliseconds,
FPGA cycles) is a sum over `Op`s, so a plan is priced without touching a tensor. Sizes are per image; a price multiplies
`rows` by the batch. Hierarchical networks fit: a stage has entry operations (patch merging, pooling), may hold parallel
branches, its blocks may work in windows or on reduced keys, and it says whether its token grid is free to shrink.
"""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from models.record import Record, later

OpKind = Literal[
    "matmul", "conv", "attention", "norm", "activation", "add", "scale", "gather", "move", "reduce", "pool", "table"
]
Axis = Literal["embed", "inputs", "qk", "v", "halves"]
"""Members that some architectures cannot lose: embedding dims, inputs of single layers, dims inside heads, and the
attention or MLP of a block alone. Heads, neurons and whole blocks can go everywhere; for tokens, see `Stage`."""
Precision = Literal["fp32", "int8", "fp16"]
"""Of the networks that vitfit makes."""
Layer = Literal["qkv", "proj", "fc1", "fc2"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
"""The linear layers of a block: what is quantised in an int8 network. All that make q, k and v count as one."""
BYTES_PER_VALUE = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Op(Record):
    """One operation. What the sizes mean depends on the kind:

    matmul, conv: `count` products of (rows x inner) with (inner x cols); conv is written as its im2col product.
    attention:    `count` = heads x windows; rows queries, cols keys, inner = q/k dim, depth = v dim.
    norm, activation, add, scale, pool: rows x cols values.
    gather, move: rows x cols values copied, one by one (some columns of each row) or by whole rows.
    reduce:       rows tokens in, inner tokens out, cols width.
    table:        a learned table of rows x cols values that is added to (positions) or joined to (tokens) the input.
    """

    kind: OpKind
    name: str
    rows: int
    cols: int
    inner: int = 1
    depth: int = 0
    count: int = 1
    weights: bool = False
    bias: bool = False
    precision: str = "fp32"
    fused: bool = False
    width_field: Literal["", "inner", "cols"] = ""
    """Which size is the embedding width, so that cutting the width is arithmetic."""
    rows_are_tokens: bool = False
    members: Literal["", "rows", "cols", "inner", "count", "dims"] = later("")
    """Which size counts the heads (or neurons) of a half that is given by its `parts`; dims: inner and depth."""
    tokens: tuple[Literal["rows", "cols", "inner"], ...] = later(())
    """Of such a part: sizes that are given for one token and grow with them; one that is named twice, with their square."""
    shift: int = later(0)
    """How many more tokens than the block it sees."""

    def of_tokens(self, tokens: int) -> "Op":
        """The operation of one token, for so many that the block has."""
        sizes: dict[str, int] = {}
        for name in self.tokens:
            sizes[name] = sizes.get(name, getattr(self, name)) * (tokens + self.shift)
        return dataclasses.replace(self, **sizes) if sizes else self  # type: ignore[arg-type]

    def of_members(self, members: int) -> "Op":
        """The operation of one member, for so many."""
        sizes: dict[str, int] = {name: getattr(self, name) * members for name in self.counted_by}
        return dataclasses.replace(self, **sizes) if sizes else self  # type: ignore[arg-type]

    @property
    def counted_by(self) -> tuple[str, ...]:
        """The sizes that `members` means."""
        return ("inner", "depth") if self.members == "dims" else (self.members,) if self.members else ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image; only matrix products count, as in the papers."""
        if self.kind in ("matmul", "conv"):
            return self.count * self.rows * self.inner * self.cols
        if self.kind == "attention":
            return self.count * self.rows * self.cols * (self.inner + self.depth)
        return 0

    @property
    def params(self) -> int:
        if not self.weights:
            return 0
        if self.kind in ("matmul", "conv"):
            return self.count * (self.inner * self.cols + (self.cols if self.bias else 0))
        if self.kind == "norm":
            return self.count * self.cols * (2 if self.bias else 1)
        if self.kind == "table":
            return self.rows * self.cols
        return self.cols

    @property
    def weight_bytes(self) -> int:
        """Of a file. Beside int8 weights stand a bias and a scale in fp32 for each column."""
        if self.precision != "int8" or not self.weights:
            return self.params * BYTES_PER_VALUE[self.precision]
        return self.count * self.cols * (self.inner + BYTES_PER_VALUE["fp32"] * (2 if self.bias else 1))

    @property
    def values(self) -> int:
        """Values written: the work of operations that are not matrix products. For attention, the softmax."""
        return self.count * self.rows * self.cols

    @property
    def bytes(self) -> int:
        """Bytes moved per image when nothing stays in a cache: weights, inputs and outputs once each."""
        if self.kind in ("matmul", "conv"):
            moved = self.count * self.rows * (self.inner + self.cols)
        elif self.kind == "attention":
            moved = self.count * (self.rows + self.cols) * (self.inner + self.depth)
        elif self.kind == "reduce":
            moved = (self.rows + self.inner) * self.cols
        else:
            moved = 2 * self.values
        return (moved + self.params) * BYTES_PER_VALUE[self.precision]


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
Place = Literal["start", "middle"]
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
    at: Place = "middle"
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


@dataclass(frozen=True)
class Stage(Record):
    """Blocks that share a token grid. `free_tokens`: no later layer needs the grid, so tokens may go."""

    name: str
    blocks: tuple[Block, ...]
    free_tokens: bool
    entry: tuple[Op, ...] = ()
    branches: tuple["Stage", ...] = ()
    follows: bool = later(False)
    """Its tokens are those that the stage before has left, however many."""
    in_graph: bool = later(False)
    """Its tokens leave a graph (models/graph/token_cut.py): in the middle of a block and by its own attention."""

    def ops(self) -> Iterator[Op]:
        yield from self.entry
        for branch in self.branches:
            yield from branch.ops()
        for block in self.blocks:
            yield from block.ops()


@dataclass(frozen=True)
class Structure(Record):
    name: str
    image: tuple[int, int, int]
    classes: int
    """0: no classifier, the outputs are features."""
    prefix: int
    """Class, distillation and register tokens: never removed, always first."""
    has_class_token: bool
    stem: tuple[Op, ...]
    stages: tuple[Stage, ...]
    tail: tuple[Op, ...]
    fixed: tuple[Axis, ...] = later(())
    """What cannot be cut in this architecture. Where the embedding width is fixed it may differ between stages."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for stage in self.stages for block in stage.blocks)

    @property
    def width(self) -> int:
        """Of the first block; stages may differ."""
        return self.blocks[0].width

    @property
    def tokens(self) -> int:
        """Of the first block; stages may differ."""
        return self.blocks[0].tokens

    @property
    def first_blocks(self) -> tuple[int, ...]:
        """Index of the first block of each stage: nothing that an earlier block saw of single tokens holds there."""
        sizes = [len(stage.blocks) for stage in self.stages]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    def ops(self) -> Iterator[Op]:
        yield from self.stem
        for stage in self.stages:
            yield from stage.ops()
        yield from self.tail

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        return _macs(self.stem) + self.block_macs + _macs(self.tail)

    def in_precision(self, precision: Literal["fp32", "fp16"]) -> "Structure":
        """The same with everything in one precision."""
        stages = tuple(_stage_in(stage, precision) for stage in self.stages)
        return dataclasses.replace(
            self, stem=_ops_in(self.stem, precision), stages=stages, tail=_ops_in(self.tail, precision)
        )

    @property
    def block_macs(self) -> int:
        """MACs of the blocks alone: the arithmetic of most papers, MDC among them."""
        return sum(_stage_sum(stage, "macs") for stage in self.stages)

    @property
    def params(self) -> int:
        ends = sum(op.params for op in self.stem + self.tail)
        return ends + sum(_stage_sum(stage, "params") for stage in self.stages)

    @property
    def weight_bytes(self) -> int:
        """Of all weights in a file."""
        ends = sum(op.weight_bytes for op in self.stem + self.tail)
        return ends + sum(_stage_sum(stage, "weight_bytes") for stage in self.stages)


def _ops_in(ops: tuple[Op, ...], precision: str) -> tuple[Op, ...]:
    return tuple(dataclasses.replace(op, precision=precision) for op in ops)


def _stage_in(stage: Stage, precision: str) -> Stage:
    return dataclasses.replace(
        stage, entry=_ops_in(stage.entry, precision),
        blocks=tuple(dataclasses.replace(block, precision=precision, exact=()) for block in stage.blocks),
        branches=tuple(_stage_in(branch, precision) for branch in stage.branches),
    )  # fmt: skip


Quantity = Literal["macs", "params", "weight_bytes"]


def _stage_sum(stage: Stage, quantity: Quantity) -> int:
    inner = sum(_stage_sum(branch, quantity) for branch in stage.branches)
    blocks = sum(_block_total(block, quantity) for block in stage.blocks)
    return int(inner + blocks + sum(getattr(op, quantity) for op in stage.entry))


def _macs(ops: tuple[Op, ...]) -> int:
    return sum(op.macs for op in ops)


@functools.lru_cache(maxsize=65536)
def _block_total(block: Block, quantity: Quantity) -> int:
    return sum(getattr(op, quantity) for op in _block_ops(block))


@functools.lru_cache(maxsize=65536)
def _block_ops(block: Block) -> tuple[Op, ...]:
    """Blocks repeat across policies: caching by value makes pricing cheap."""
    return block_ops(block)


def block_ops(block: Block) -> tuple[Op, ...]:
    """Its operations in order. Sizes may be arrays, of many blocks alike (latency/features.py)."""
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
    """Per token and head: feature, then a vote; per token: the weights of the heads. See models/selector.py."""
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
