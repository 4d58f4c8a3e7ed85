"""Predict the bytes of a network's file, and the peak memory of a process that runs the network.

Both are straight lines through measured points, over sizes that are known before anything is built. The file consists
of the weights and a graph. The memory consists of the runtime, its copies of the weights, and the largest values that
are live at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from latency.prediction.pricer import Array
from models.record import Record
from models.structure import BYTES_PER_VALUE, Structure

Quantity = Literal["file", "memory"]
QUANTITIES: tuple[Quantity, ...] = ("file", "memory")


@dataclass(frozen=True)
class Weighed(Record):
    """A measured structure. size: its `known_bytes`. bytes: the bytes that were measured."""

    size: float
    bytes: float


@dataclass(frozen=True)
class SizeLine(Record):
    """A straight line through measured structures. The first sample is the original."""

    quantity: Quantity
    batch: int
    samples: tuple[Weighed, ...]

    @property
    def original_bytes(self) -> float:
        return self.samples[0].bytes

    def with_sample(self, structure: Structure, measured: float) -> "SizeLine":
        known = known_bytes(self.quantity, structure, self.batch)
        return SizeLine(self.quantity, self.batch, (*self.samples, Weighed(known, measured)))

    def price(self, structures: Sequence[Structure]) -> Array:
        """Predicted bytes of each structure.

        The slope is 1 for files, and for memory as long as all samples have one size. The line passes through the last
        sample, because it was measured for the network in question.
        """
        x = np.asarray([sample.size for sample in self.samples])
        y = np.asarray([sample.bytes for sample in self.samples])
        slope = float(np.polyfit(x, y, 1)[0]) if np.ptp(x) > 0 and self.quantity == "memory" else 1.0
        wanted = np.asarray([known_bytes(self.quantity, structure, self.batch) for structure in structures])
        return np.asarray(y[-1] + max(slope, 0.0) * (wanted - x[-1]))


def known_bytes(quantity: Quantity, structure: Structure, batch: int) -> float:
    weights = float(structure.weight_bytes)
    return weights if quantity == "file" else weights + _live_bytes(structure, batch)


def _live_bytes(structure: Structure, batch: int) -> float:
    """Bytes of the inputs and outputs of the widest operation, in fp32."""
    widest = max(op.values + op.rows * op.inner * op.count for op in structure.ops())
    return float(widest * batch * BYTES_PER_VALUE["fp32"])
