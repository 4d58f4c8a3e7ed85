"""Number formats (int8, fp16): fake quantisation in trials, and conversion of the exported file."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import nn

from models.quantization.fake_quantize import emulated
from models.quantization.fp16 import half_precision, to_half
from models.quantization.int8 import Quantiser, mark, quantize_file


class Rounding(Protocol):
    def emulated(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside the block, `module` rounds as its file will (fake quantisation)."""
        ...

    def prepare(self, module: nn.Module) -> None:
        """Prepare `module` for the export, in place."""
        ...

    def finish(self, file: Path) -> None:
        """Convert the exported file, in place and atomically."""
        ...


class Int8:
    """The int8 format. `layers` returns the linear layers of a module that are quantised."""

    def __init__(self, layers: Callable[[nn.Module], Iterable[nn.Linear]], quantiser: Quantiser) -> None:
        self._layers, self._quantiser = layers, quantiser

    def emulated(self, module: nn.Module) -> AbstractContextManager[None]:
        return emulated(module, self._layers(module), self._quantiser)

    def prepare(self, module: nn.Module) -> None:
        mark(module, self._layers(module))

    def finish(self, file: Path) -> None:
        quantize_file(file, self._quantiser.weight_bits)


class Half:
    """The fp16 format: the whole network is fp16, except input images and outputs."""

    def emulated(self, module: nn.Module) -> AbstractContextManager[None]:
        return half_precision(module)

    def prepare(self, module: nn.Module) -> None:
        """Nothing to do."""

    def finish(self, file: Path) -> None:
        to_half(file)
