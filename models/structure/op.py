"""One operation of a network, and what it costs. Standard library only."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from models.record import Record, later

OpKind = Literal[
    "matmul", "conv", "attention", "norm", "activation", "add", "scale", "gather", "move", "reduce", "pool", "table"
]
Precision = Literal["fp32", "int8", "fp16"]
"""Number formats of the networks that vitfit produces."""
BYTES_PER_VALUE = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Op(Record):
    """One operation. What the sizes mean depends on the kind:

    matmul, conv: `count` products of (rows x inner) with (inner x cols); conv is written as its im2col product.
    attention:    `count` = heads x windows; rows queries, cols keys, inner = q/k dim, depth = v dim.
    norm, activation, add, scale, pool: rows x cols values.
    gather, move: rows x cols values copied. gather copies some columns of each row, move copies complete rows.
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
    """The size that equals the embedding width. Cutting the width replaces this size. Empty: no size depends on it."""
    rows_are_tokens: bool = False
    members: Literal["", "rows", "cols", "inner", "count", "dims"] = later("")
    """The size that scales with the number of heads or neurons, for an operation in the `parts` of a sublayer. dims:
    both inner and depth scale."""
    qk: Literal["", "rows", "cols", "inner", "depth"] = later("")
    """For an operation in `parts`: the size that is given for one q/k dim and scales with their number."""
    v: Literal["", "rows", "cols", "inner", "depth"] = later("")
    """The same for the v dims."""
    tokens: tuple[Literal["rows", "cols", "inner"], ...] = later(())
    """For an operation in `parts`: names of the sizes that are given for one token and scale with the token count. A
    name that is listed twice scales quadratically."""
    stream: int = later(0)
    """For an operation with a `width_field`: the number of the residual stream with this width."""
    taps: int = later(1)
    """For an operation whose `width_field` is inner: the number of places that a kernel reads, each of this width."""
    shift: int = later(0)
    """Number of tokens that this operation processes in addition to those of the block."""

    def of_tokens(self, tokens: int) -> "Op":
        """Scale this per-token operation to `tokens` tokens."""
        sizes: dict[str, int] = {}
        for name in self.tokens:
            sizes[name] = sizes.get(name, getattr(self, name)) * (tokens + self.shift)
        return dataclasses.replace(self, **sizes) if sizes else self  # type: ignore[arg-type]

    def of_members(self, members: int) -> "Op":
        """Scale this per-member operation (of one head or neuron) to `members` members."""
        sizes: dict[str, int] = {name: getattr(self, name) * members for name in self.counted_by}
        return dataclasses.replace(self, **sizes) if sizes else self  # type: ignore[arg-type]

    def of_dims(self, qk: int, v: int) -> "Op":
        """Scale this operation to the number of q/k dims and of v dims in each head."""
        sizes: dict[str, int] = {}
        for name, count in ((self.qk, qk), (self.v, v)):
            if name:
                sizes[name] = sizes.get(name, getattr(self, name)) * count
        return dataclasses.replace(self, **sizes) if sizes else self  # type: ignore[arg-type]

    def of_width(self, width: int) -> "Op":
        """Give this operation another embedding width."""
        if not self.width_field:
            return self
        size = width * self.taps if self.width_field == "inner" else width
        return dataclasses.replace(self, **{self.width_field: size})  # type: ignore[arg-type]

    @property
    def counted_by(self) -> tuple[str, ...]:
        """Names of the sizes that scale with the number of members."""
        return ("inner", "depth") if self.members == "dims" else (self.members,) if self.members else ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image. Only matrix products count, as in the papers."""
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
        """Bytes of the weights in a file. An int8 layer also stores a bias and a scale in fp32 for each column."""
        if self.precision != "int8" or not self.weights:
            return self.params * BYTES_PER_VALUE[self.precision]
        return self.count * self.cols * (self.inner + BYTES_PER_VALUE["fp32"] * (2 if self.bias else 1))

    @property
    def values(self) -> int:
        """Number of values written.

        It measures operations that are not matrix products; for attention it is the softmax.
        """
        return self.count * self.rows * self.cols

    @property
    def bytes(self) -> int:
        """Bytes moved per image if no data stays in a cache: weights, inputs and outputs are each moved once."""
        if self.kind in ("matmul", "conv"):
            moved = self.count * self.rows * (self.inner + self.cols)
        elif self.kind == "attention":
            moved = self.count * (self.rows + self.cols) * (self.inner + self.depth)
        elif self.kind == "reduce":
            moved = (self.rows + self.inner) * self.cols
        else:
            moved = 2 * self.values
        return (moved + self.params) * BYTES_PER_VALUE[self.precision]


def ops_in(ops: tuple[Op, ...], precision: str) -> tuple[Op, ...]:
    return tuple(dataclasses.replace(op, precision=precision) for op in ops)
