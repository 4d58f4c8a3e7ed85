"""How a network that is not delivered in fp32 rounds: in trials, and in its file."""

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
        """Meanwhile `module` computes as its file will."""
        ...

    def prepare(self, module: nn.Module) -> None:
        """Before it is exported, in place."""
        ...

    def finish(self, file: Path) -> None:
        """Afterwards, in place and at once."""
        ...


class Int8:
    """layers: of a module, those that are quantised."""

    def __init__(self, layers: Callable[[nn.Module], Iterable[nn.Linear]], quantiser: Quantiser) -> None:
        self._layers, self._quantiser = layers, quantiser

    def emulated(self, module: nn.Module) -> AbstractContextManager[None]:
        return emulated(module, self._layers(module), self._quantiser)

    def prepare(self, module: nn.Module) -> None:
        mark(module, self._layers(module))

    def finish(self, file: Path) -> None:
        quantize_file(file, self._quantiser.weight_bits)


class Half:
    """fp16: everything but images and answers."""

    def emulated(self, module: nn.Module) -> AbstractContextManager[None]:
        return half_precision(module)

    def prepare(self, module: nn.Module) -> None:
        """Nothing to do."""

    def finish(self, file: Path) -> None:
        to_half(file)
