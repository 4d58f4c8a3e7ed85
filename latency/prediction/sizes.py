"""What a network weighs: bytes of its file, and memory at the peak of a process that runs it.

Both are straight lines in sizes that are known before anything is built, through what was measured: the file is its weights and a
graph; the memory is the runtime, its copies of the weights, and the largest values that live at once.
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
    """A measured structure. size: of `known_bytes`."""

    size: float
    bytes: float


@dataclass(frozen=True)
class SizeLine(Record):
    """The original comes first."""

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
        """Predicted bytes. One sample: a line of slope 1 through it. The last sample lies on the line: it is what was asked for."""
        x = np.asarray([sample.size for sample in self.samples])
        y = np.asarray([sample.bytes for sample in self.samples])
        slope = float(np.polyfit(x, y, 1)[0]) if np.ptp(x) > 0 and self.quantity == "memory" else 1.0
        wanted = np.asarray([known_bytes(self.quantity, structure, self.batch) for structure in structures])
        return np.asarray(y[-1] + max(slope, 0.0) * (wanted - x[-1]))


def known_bytes(quantity: Quantity, structure: Structure, batch: int) -> float:
    weights = float(structure.weight_bytes)
    return weights if quantity == "file" else weights + _live_bytes(structure, batch)


def _live_bytes(structure: Structure, batch: int) -> float:
    """Of the widest operation: what goes in and what comes out."""
    widest = max(op.values + op.rows * op.inner * op.count for op in structure.ops())
    return float(widest * batch * BYTES_PER_VALUE["fp32"])
