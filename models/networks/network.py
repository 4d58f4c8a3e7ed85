"""A `Network` can be described, give statistics, be pruned, give outputs and be exported.

Two kinds stand side by side: `Network` (models/networks/torch_network.py), whose architecture a family describes, and
`GraphNetwork` (models/graph/network.py), whose attention and MLPs were found in its graph. What both share is here.
"""

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from models.data.preprocessing import Preprocessing
from models.export.inference_blocks import Form
from models.export.onnx_export import export_onnx
from models.pruning.token_reduction import TokenReduction
from models.quantization.int8 import Quantiser
from models.quantization.number_formats import Half, Int8, Rounding
from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import Kind, Statistics
from models.structure import Plan, Structure


class Network(ABC):
    """A module with its structure. `pruned` and the `with_...` methods return a new network; none of them changes this one."""

    module: nn.Module
    preprocessing: Preprocessing
    plan: Plan | None = None
    """What was pruned; None: the network is dense."""
    class_names: tuple[str, ...] | None = None
    _structure: Structure
    _quantiser: Quantiser | None = None

    @property
    def structure(self) -> Structure:
        return self._structure

    @property
    def quantiser(self) -> Quantiser:
        """How files of int8 plans are made. Unless one was chosen, the quantiser that suits this machine's processor."""
        return self._quantiser or Quantiser.here()

    @property
    def rounding(self) -> Rounding | None:
        """How the network's numbers are rounded; None: it is an fp32 network."""
        if self.plan is None or self.plan.precision == "fp32":
            return None
        return Half() if self.plan.precision == "fp16" else Int8(self.int8_layers_of, self.quantiser)

    def with_quantiser(self, quantiser: Quantiser) -> Self:
        """The same network, whose int8 files are made by `quantiser`."""
        same = copy.copy(self)
        same._quantiser = quantiser
        return same

    def with_class_names(self, names: Iterable[str]) -> Self:
        """The same network, whose outputs have these names, in their order."""
        same = copy.copy(self)
        same.class_names = tuple(names)
        return same

    def with_module(self, module: nn.Module) -> Self:
        """The same network with another module of the same structure, such as a trained copy of its own."""
        same = copy.copy(self)
        same.module = module
        return same

    def with_plan(self, plan: Plan) -> Self:
        """The same module under a plan that differs in its precision only. For fp32, the structure says so too."""
        same = copy.copy(self)
        same.plan = plan
        if plan.precision == "fp32":
            same._structure = self._structure.in_precision("fp32")
        return same

    def exact(self) -> Self:
        """The same network in fp32."""
        if self.rounding is None or self.plan is None:
            return self
        blocks = tuple(dataclasses.replace(block, exact=()) for block in self.plan.blocks)
        return self.with_plan(dataclasses.replace(self.plan, blocks=blocks, precision="fp32"))

    def outputs(self, images: Tensor, batch: int = 64) -> Tensor:
        """Logits (n, C) of images (n, C, H, W), without gradients, rounded as the network's file rounds."""
        with nullcontext() if self.rounding is None else self.rounding.emulated(self.module):
            return outputs_of(self.module, images, batch)

    def reductions(self) -> list[TokenReduction]:
        """The token reductions, in the order of the blocks."""
        return [module for module in self.module.modules() if isinstance(module, TokenReduction)]

    @property
    @abstractmethod
    def pools_tokens(self) -> bool:
        """Whether the classifier reads a mean over tokens instead of the class token."""

    @property
    @abstractmethod
    def recovers_in_sequence(self) -> bool:
        """Whether `recovered_in_sequence` can be called."""

    @abstractmethod
    def weights(self) -> tuple[LayerWeights, ...]:
        """The dense layers of each block that rankings and recovery read."""

    @abstractmethod
    def check_kinds(self, kinds: Collection[Kind]) -> None:
        """Raises: InvalidRequest for statistics that cannot be taken of this network."""

    @abstractmethod
    def statistics(self, images: Tensor, kinds: Collection[Kind] = (), labels: Tensor | None = None) -> Statistics:
        """Moments of the images (n, C, H, W), and what each further kind takes. labels (n,): only `taylor` reads them."""

    @abstractmethod
    def pruned(self, plan: Plan, statistics: Statistics | None) -> Self:
        """The network that `plan` leaves; with statistics (of this network) recovered in closed form."""

    @abstractmethod
    def recovered_in_sequence(self, dense: Self, images: Tensor) -> Self:
        """This pruned network, re-fitted layer by layer to what really reaches each layer.

        dense: what it was pruned from. images (n, C, H, W): for calibration.
        """

    @abstractmethod
    def int8_layers_of(self, module: nn.Module) -> Iterator[nn.Linear]:
        """The linear layers of `module`, a copy of the network's own, that its int8 plan quantises."""

    @abstractmethod
    def export(self, path: Path, batch: int | None, form: Form = "standard") -> None:
        """Writes an ONNX file. batch None: for any batch size. form: for which runtime."""

    def write(self, module: nn.Module, path: Path, batch: int | None) -> None:
        """Writes `module`, a copy of the network's own in its exported form, as an ONNX file in the network's precision."""
        rounding = self.rounding
        if rounding is not None:
            rounding.prepare(module)
        finish = None if rounding is None else rounding.finish
        export_onnx(module, self._structure.image, self.preprocessing, path, batch, finish)


def outputs_of(module: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Outputs of a module, computed where its parameters are; the answer lies where the images do."""
    device = next(module.parameters()).device
    with torch.inference_mode():
        chunks = (module(chunk.to(device)) for chunk in images.split(batch))
        return torch.cat([answer.to(images.device) for answer in chunks])
