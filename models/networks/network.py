"""The base class `Network`: a model that can be described, analysed, pruned, run and exported.

It has two subclasses. The architecture of a `TorchNetwork` (models/networks/torch_network.py) is described by a family.
The attention and the MLPs of a `GraphNetwork` (models/graph/network.py) were found in its graph.
"""

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from models.data.preprocessing import Preprocessing
from models.export.inference_blocks import Form
from models.export.onnx_export import export_onnx
from models.export.signature import Signature
from models.pruning.token_reduction import TokenReduction
from models.quantization.int8 import Quantiser
from models.quantization.number_formats import Half, Int8, Rounding
from models.rotation.bases import ROTATED_AXES, Bases
from models.statistics.layer_weights import LayerWeights
from models.statistics.statistics import Kind, Statistics
from models.structure import Plan, RotatedAxis, Structure


class Network(ABC):
    """A PyTorch module with its structure.

    `pruned` and the `with_...` methods return a new network and leave this one unchanged.
    """

    module: nn.Module
    preprocessing: Preprocessing
    plan: Plan | None = None
    """The plan that the network was pruned with; None for a dense network."""
    assumptions: tuple[str, ...] = ()
    """Sentences that say what vitfit has assumed about the model, because no file said it."""
    rotation: Bases | None = None
    """The bases that a rotated network, or the network that it was pruned from, is in; None for its own bases."""
    class_names: tuple[str, ...] | None = None
    signature: Signature = Signature()
    """The names of the input and the outputs in exported files."""
    _structure: Structure
    _quantiser: Quantiser | None = None

    @property
    def structure(self) -> Structure:
        return self._structure

    @property
    def quantiser(self) -> Quantiser:
        """The quantiser for files of int8 plans. The default is the one that suits the processor of this machine."""
        return self._quantiser or Quantiser.here()

    @property
    def rounding(self) -> Rounding | None:
        """The number format (fp16 or int8) that the network is rounded to; None for an fp32 network."""
        if self.plan is None or self.plan.precision == "fp32":
            return None
        return Half() if self.plan.precision == "fp16" else Int8(self.int8_layers_of, self.quantiser)

    def with_quantiser(self, quantiser: Quantiser) -> Self:
        """Return the same network with another quantiser for its int8 files."""
        same = copy.copy(self)
        same._quantiser = quantiser
        return same

    def with_assumptions(self, sentences: Iterable[str]) -> Self:
        """Return the same network with further assumptions."""
        same = copy.copy(self)
        same.assumptions = (*self.assumptions, *sentences)
        return same

    def with_class_names(self, names: Iterable[str]) -> Self:
        """Return the same network with these class names, in the order of its outputs."""
        same = copy.copy(self)
        same.class_names = tuple(names)
        return same

    def with_signature(self, signature: Signature) -> Self:
        """Return the same network with other names in its exported files."""
        same = copy.copy(self)
        same.signature = signature
        return same

    @property
    def with_all_outputs(self) -> nn.Module:
        """The module that returns all outputs of `signature`. `module` returns the judged output only."""
        return self.module

    def with_module(self, module: nn.Module) -> Self:
        """Return the same network with another module of the same structure, such as a trained copy of its own."""
        same = copy.copy(self)
        same.module = module
        return same

    def with_plan(self, plan: Plan) -> Self:
        """Return the same module with a plan that differs only in precision.

        If the new precision is fp32, the structure becomes fp32 too.
        """
        same = copy.copy(self)
        same.plan = plan
        if plan.precision == "fp32":
            same._structure = self._structure.in_precision("fp32")
        return same

    def exact(self) -> Self:
        """Return the same network in fp32."""
        if self.rounding is None or self.plan is None:
            return self
        blocks = tuple(dataclasses.replace(block, exact=()) for block in self.plan.blocks)
        return self.with_plan(dataclasses.replace(self.plan, blocks=blocks, precision="fp32"))

    def outputs(self, images: Tensor, batch: int = 64) -> Tensor:
        """Return the logits (n, classes) of images (n, C, H, W), without gradients.

        For fp16 and int8 networks, fake quantisation rounds the values as the exported file does.
        """
        with nullcontext() if self.rounding is None else self.rounding.emulated(self.module):
            return outputs_of(self.module, images, batch)

    def reductions(self) -> list[TokenReduction]:
        """Return the token reductions, in the order of the blocks."""
        return [module for module in self.module.modules() if isinstance(module, TokenReduction)]

    @property
    @abstractmethod
    def pools_tokens(self) -> bool:
        """True if the classifier reads a mean over tokens instead of the class token."""

    @property
    @abstractmethod
    def recovers_in_sequence(self) -> bool:
        """True if `recovered_in_sequence` can be called."""

    @property
    @abstractmethod
    def input_kinds(self) -> frozenset[Kind]:
        """The statistics with which recovery fits the layers that read a narrower stream."""

    @abstractmethod
    def weights(self) -> tuple[LayerWeights, ...]:
        """Return the linear layers of each block, which rankings and recovery read."""

    @abstractmethod
    def check_kinds(self, kinds: Collection[Kind]) -> None:
        """Raises: InvalidRequest for statistics that cannot be collected for this network."""

    @abstractmethod
    def statistics(self, images: Tensor, kinds: Collection[Kind] = (), labels: Tensor | None = None) -> Statistics:
        """Collect the moments of layer inputs, and the further statistics named in `kinds`.

        images: (n, C, H, W). labels: (n,), read by the kind `taylor` only.
        """

    @property
    @abstractmethod
    def not_rotated(self) -> dict[RotatedAxis, str]:
        """The axes that `bases` leaves as they are, each with the reason."""

    @property
    def rotatable(self) -> tuple[RotatedAxis, ...]:
        """The axes that `bases` rotates."""
        return tuple(axis for axis in ROTATED_AXES if axis not in self.not_rotated)

    @property
    def fixed_stages(self) -> dict[str, str]:
        """The stages whose width `bases` leaves as it is, each with the reason."""
        return {}

    @abstractmethod
    def bases(self, images: Tensor) -> Bases | None:
        """Return the rotated bases of this dense network (models/rotation); None if it allows none.

        images: (n, C, H, W), from the calibration split.
        """

    @abstractmethod
    def rotated(self, bases: Bases) -> Self:
        """Return the same dense network in rotated bases. It computes the same, up to rounding."""

    def spreads(self) -> Sequence[Self]:
        """Return the same pruned int8 network in bases that spread its energy, so that less is rounded away."""
        return ()

    @abstractmethod
    def pruned(self, plan: Plan, statistics: Statistics | None) -> Self:
        """Return the network pruned by `plan`.

        If `statistics` of this network are given, it is recovered in closed form.
        """

    @abstractmethod
    def recovered_in_sequence(self, dense: Self, images: Tensor) -> Self:
        """Return this pruned network after sequential recovery: each layer is refitted on the inputs that it really
        gets.

        dense: the network that this one was pruned from. images: (n, C, H, W), from the calibration split.
        """

    @abstractmethod
    def int8_layers_of(self, module: nn.Module) -> Iterator[nn.Linear]:
        """Yield the linear layers that the int8 plan quantises. module: a copy of the network's own module."""

    @abstractmethod
    def export(self, path: Path, batch: int | None, form: Form = "standard") -> None:
        """Write an ONNX file. batch: images per run; None for any batch size.

        form: the runtime that the file is for.
        """

    def write(self, module: nn.Module, path: Path, batch: int | None) -> None:
        """Write an ONNX file in the network's precision.

        module: a copy of the network's own module, in its exported form.
        """
        rounding = self.rounding
        if rounding is not None:
            rounding.prepare(module)
        finish = None if rounding is None else rounding.finish
        image, names = self._structure.image, self.signature
        export_onnx(module, image, self.preprocessing, path, batch=batch, signature=names, finish=finish)


def outputs_of(module: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Return the outputs of a module, without gradients.

    They are computed on the device of the module's parameters, and returned on the device of the images.
    """
    device = next(module.parameters()).device
    with torch.inference_mode():
        chunks = (module(chunk.to(device)) for chunk in images.split(batch))
        return torch.cat([answer.to(images.device) for answer in chunks])
