"""Analytical prices from a profile: a data file with units and sources. Two kinds of machine.

roofline (a core with a cache):
    t(op) = max(sum over products of macs / (peak * efficiency), bytes / bandwidth) + values * ns_per_value[kind] + overhead
    efficiency = inner / (inner + half_inner) * cols / (ceil(cols / lanes) * lanes)
    Products short in the summed dim never fill the pipeline; columns are computed in whole vectors.

tiled (a matrix engine beside units for softmax, norms and activations, one operation after the other):
    cycles(product) = ceil(rows / tile_rows) * ceil(inner / tile_inner) * ceil(cols / tile_cols)
    t(op) = max(cycles / clock, bytes / bandwidth) + values / (values_per_cycle[kind] * clock) + overhead
"""

from collections.abc import Sequence

import numpy as np

from latency.devices import read_profile
from latency.pricer import Prediction
from latency.setting import Setting
from models.structure import BYTES_PER_VALUE, Block, Op, Structure


class ProfilePricer:
    """Deterministic; blocks are priced once and remembered."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.device, self.setting = name, setting
        self._profile = read_profile(name)
        self._op_ms = {"roofline": self._roofline_ms, "tiled": self._tiled_ms}[self._profile["model"]]
        self._blocks: dict[Block, float] = {}

    def price(self, structures: Sequence[Structure]) -> Prediction:
        ms = np.asarray([self._structure_ms(structure) for structure in structures])
        return Prediction(ms, ms * self._profile["relative_uncertainty"], f"profile {self.device}")

    def _structure_ms(self, structure: Structure) -> float:
        total = sum(map(self._op_ms, structure.stem)) + sum(map(self._op_ms, structure.tail))
        for stage in structure.stages:
            total += sum(map(self._op_ms, stage.entry))
            total += sum(self._op_ms(op) for branch in stage.branches for op in branch.ops())
            total += sum(self._block_ms(block) for block in stage.blocks)
        return total

    def _block_ms(self, block: Block) -> float:
        if block not in self._blocks:
            self._blocks[block] = sum(map(self._op_ms, block.ops()))
        return self._blocks[block]

    def _roofline_ms(self, op: Op) -> float:
        p, batch = self._profile, self.setting.batch
        compute_s = 0.0
        for macs, inner, cols in _products(op):
            cols *= op.count if op.kind == "conv" else 1  # the channels of a grouped convolution share vectors
            lanes = -(-cols // p["lanes"]) * p["lanes"]
            efficiency = inner / (inner + p["half_inner"]) * cols / lanes
            compute_s += macs * batch / (p["peak_macs_per_s"] * efficiency)
        seconds = max(compute_s, self._memory_s(op, batch))
        return float(1e3 * (seconds + self._elementwise_s(op, batch) + p["overhead_s_per_operation"]))

    def _memory_s(self, op: Op, batch: int) -> float:
        """Values have the profile's precision, whatever the structure's."""
        share = BYTES_PER_VALUE[self._profile["precision"]] / BYTES_PER_VALUE[op.precision]
        return float(op.bytes * share * batch / self._profile["bandwidth_bytes_per_s"])

    def _elementwise_s(self, op: Op, batch: int) -> float:
        kind = "softmax" if op.kind == "attention" else op.kind
        return float(op.values * batch * self._profile["ns_per_value"].get(kind, 0.0) * 1e-9)

    def _tiled_ms(self, op: Op) -> float:
        p, batch = self._profile, self.setting.batch
        tile, cycles = p["tile"], 0
        for macs, inner, cols in _products(op):
            rows, count = macs // (op.count * inner * cols), op.count
            cycles += count * -(-rows // tile["rows"]) * -(-inner // tile["inner"]) * -(-cols // tile["cols"])
        seconds = max(cycles * batch / p["clock_hz"], self._memory_s(op, batch))
        kind = "softmax" if op.kind == "attention" else op.kind
        if kind in p["values_per_cycle"]:
            seconds += op.values * batch / (p["values_per_cycle"][kind] * p["clock_hz"])
        return float(1e3 * (seconds + p["overhead_s_per_operation"]))


def _products(op: Op) -> list[tuple[int, int, int]]:
    """(MACs, summed dim, columns) of each matrix product in an operation."""
    if op.kind in ("matmul", "conv"):
        return [(op.macs, op.inner, op.cols)]
    if op.kind == "attention":
        scores = op.count * op.rows * op.cols * op.inner
        return [(scores, op.inner, op.cols), (op.macs - scores, op.cols, op.depth)]
    return []
