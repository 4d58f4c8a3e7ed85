"""The interface of all devices: price many structures at once, without exporting any of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from latency.devices.setting import Setting
from models.structure import Structure

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Predicted milliseconds per run, and the half-width of their 90 % interval, one entry per structure. Measurements
    have a type of their own."""

    ms: Array
    half_width_ms: Array
    origin: str


class Pricer(Protocol):
    @property
    def device(self) -> str: ...

    @property
    def setting(self) -> Setting: ...

    def price(self, structures: Sequence[Structure]) -> Prediction: ...
