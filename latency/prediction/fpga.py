"""Latency models of matrix engines on FPGAs, in clock cycles.

tiled: one matrix engine and separate units for softmax, norms and activations; operations run one after the other
    cycles(product) = ceil(rows / tile_rows) * ceil(inner / tile_inner) * ceil(cols / tile_cols)
    t(op) = max(cycles / clock, bytes / bandwidth) + values / (values_per_cycle[kind] * clock) + overhead

pipeline: one hardware stage per layer; images pass through the stages one behind the other (HG-PIPE, arXiv 2407.17879)
    cycles(product) = ceil(tokens / TP) * ceil(inner / lanes_inner) * ceil(cols / lanes_cols),
                      for one head where each head has hardware of its own
    cycles(norm)    = passes * ceil(tokens / TP) * width
    cycles(softmax) = passes * ceil(queries / TP) * keys
    t(network)      = max over all stages / clock: the time between two images, not the latency of the first one
So a pruned network is faster only if its slowest stage is faster. Removing heads alone gains nothing, because each head
has hardware of its own.
"""

from typing import Any

from latency.prediction.roofline import InTurn, kind_of, memory_s, products
from models.structure import Block, Op


class Tiled(InTurn):
    def op_s(self, op: Op, batch: int) -> float:
        p, cycles = self._p, 0
        tile = p["tile"]
        for macs, inner, cols in products(op):
            rows = macs // (op.count * inner * cols)
            cycles += op.count * _ceil(rows, tile["rows"]) * _ceil(inner, tile["inner"]) * _ceil(cols, tile["cols"])
        seconds = max(cycles * batch / p["clock_hz"], memory_s(op, batch, p))
        if kind_of(op) in p["values_per_cycle"]:
            seconds += op.values * batch / (p["values_per_cycle"][kind_of(op)] * p["clock_hz"])
        return float(seconds + p["overhead_s_per_operation"])


class Pipeline:
    def __init__(self, profile: dict[str, Any]) -> None:
        self._p = profile

    def block_s(self, block: Block, batch: int) -> float:
        return max((self._cycles(op, block) for op in block.ops()), default=0) * batch / float(self._p["clock_hz"])

    def op_s(self, op: Op, batch: int) -> float:
        return self._cycles(op, None) * batch / float(self._p["clock_hz"])

    def network_s(self, parts_s: list[float]) -> float:
        return max(parts_s)

    def _cycles(self, op: Op, block: Block | None) -> int:
        """Cycles of one operation. Operations without a stage of their own (activations, sums, token reduction) take
        none: their values flow through."""
        if op.kind == "norm":
            return int(self._p["passes"]) * self._steps(op.rows * op.count) * op.cols
        if op.kind == "attention":
            softmax = int(self._p["passes"]) * self._steps(op.rows) * op.cols
            scores = self._stage("scores", op.rows, op.inner, op.cols)
            return max(softmax, scores, self._stage("values", op.rows, op.cols, op.depth))
        if op.kind not in ("matmul", "conv"):
            return 0
        role = op.name.rpartition(".")[2]
        if block is None:
            if op.rows == 1:
                return _ceil(op.macs, self._p["classifier_macs_per_cycle"])
            return self._stage("patch", op.rows, op.inner, op.cols)
        if role not in self._p["stages"]:
            return op.macs  # the design has no hardware for it: one multiplication per cycle
        cols = op.cols
        if role == "qkv" and block.attention is not None:
            cols = max(block.attention.qk_dim, block.attention.v_dim)
        return self._stage(role, op.rows, op.inner, cols)

    def _stage(self, role: str, rows: int, inner: int, cols: int) -> int:
        lanes = self._p["stages"][role]
        return self._steps(rows) * _ceil(inner, lanes["inner"]) * _ceil(cols, lanes["cols"])

    def _steps(self, rows: int) -> int:
        return _ceil(rows, self._p["tokens_per_cycle"])


def _ceil(size: int, step: int) -> int:
    return -(-size // step)
