"""The latency model of a core with a cache:

    t(op) = max(sum over products of macs / (peak * efficiency), bytes / bandwidth)
            + values * ns_per_value[kind] + overhead
    efficiency = inner / (inner + half_inner) * cols / (cols + half_cols) * cols / (ceil(cols / lanes) * lanes)

Products with a short summed dim never fill the core's pipeline. Columns are computed in whole vectors, and a small
number of columns leaves the block of a kernel half empty.
"""

from abc import ABC, abstractmethod
from typing import Any

from models.structure import BYTES_PER_VALUE, Block, Op


class InTurn(ABC):
    """Hardware that runs one operation after the other, so their times add up."""

    def __init__(self, profile: dict[str, Any]) -> None:
        self._p = profile

    @abstractmethod
    def op_s(self, op: Op, batch: int) -> float: ...

    def block_s(self, block: Block, batch: int) -> float:
        return sum(self.op_s(op, batch) for op in block.ops())

    def network_s(self, parts_s: list[float]) -> float:
        return sum(parts_s)


class Roofline(InTurn):
    def op_s(self, op: Op, batch: int) -> float:
        p, compute_s = self._p, 0.0
        for macs, inner, cols in products(op):
            cols *= op.count if op.kind == "conv" else 1  # the channels of a grouped convolution share vectors
            lanes = -(-cols // p["lanes"]) * p["lanes"]
            efficiency = inner / (inner + p["half_inner"]) * cols / (cols + p.get("half_cols", 0.0)) * cols / lanes
            compute_s += macs * batch / (p["peak_macs_per_s"] * efficiency)
        elementwise_s = op.values * batch * p["ns_per_value"].get(kind_of(op), 0.0) * 1e-9
        return float(max(compute_s, memory_s(op, batch, p)) + elementwise_s + p["overhead_s_per_operation"])


def memory_s(op: Op, batch: int, profile: dict[str, Any]) -> float:
    """Seconds that an operation needs for its memory traffic. Values have the precision of the profile, whatever the
    precision of the structure is."""
    share = BYTES_PER_VALUE[profile["precision"]] / BYTES_PER_VALUE[op.precision]
    return float(op.bytes * share * batch / profile["bandwidth_bytes_per_s"])


def kind_of(op: Op) -> str:
    """The name under which a profile lists the cost of the operation's values."""
    return "softmax" if op.kind == "attention" else op.kind


def products(op: Op) -> list[tuple[int, int, int]]:
    """(MACs, summed dim, columns) of each matrix product in an operation."""
    if op.kind in ("matmul", "conv"):
        return [(op.macs, op.inner, op.cols)]
    if op.kind == "attention":
        scores = op.count * op.rows * op.cols * op.inner
        return [(scores, op.inner, op.cols), (op.macs - scores, op.cols, op.depth)]
    return []
