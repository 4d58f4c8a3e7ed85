"""The PyTorch `Network`."""

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.attention_statistics import AttentionStatistics, attention_statistics
from models.block_layers import int8_layers
from models.deletion import deletion_scores
from models.dependence import Dependence, dependence, output_kernel
from models.describe import describe, head_count
from models.errors import InvalidRequest
from models.export import export_onnx
from models.families import family_of
from models.family import Family, block_lists, blocks_of, optional_part, part
from models.gates import Gates
from models.gradients import fisher_scores, taylor_scores
from models.member_kinds import MemberKinds, add_member_scores
from models.moments import Moments
from models.network import LayerWeights
from models.plan import Plan, identity
from models.preprocessing import Preprocessing
from models.prune import prune
from models.pruned import PrunedBlock
from models.quantize import Quantiser
from models.recover import Readers, recover
from models.reduction import TokenReduction
from models.rounding import Half, Int8, Rounding
from models.rows import Form, as_rows, fold_scales
from models.slice import readers
from models.statistics import BlockStatistics, Inputs, Kind, Statistics
from models.structure import Structure

PLAIN_KINDS: frozenset[Kind] = frozenset({"attention", "gates", "inputs", "deletion"})
DEPENDENCE_IMAGES = 128
"""MDC uses one batch of 128 images."""
ATTENTION_BATCH = 16
"""An attention is heads x tokens x tokens for each image."""
MOMENT_ROWS = 16384
"""Token vectors per layer that moments see: several times the widest layer, and affordable."""


class TorchNetwork:
    """A module with its structure. `pruned` returns a new one; nothing here changes `module`."""

    _quantiser: Quantiser | None = None

    def __init__(self, module: nn.Module, name: str, preprocessing: Preprocessing) -> None:
        """Raises: UnsupportedModel with the reasons."""
        self.module = module.eval()
        self.preprocessing = preprocessing
        self._family = family_of(module)
        self._structure = describe(module, self._family, name, preprocessing.size[1:])
        self.plan: Plan | None = None
        self.class_names: tuple[str, ...] | None = None
        self.gates: tuple[Gates, ...] | None = None
        """As trained (models/train_gates.py), and folded into the weights."""
        self.threshold = 0.5
        """Tokens whose selector says at least this stay in the dynamic form (models/dynamic.py)."""

    @property
    def structure(self) -> Structure:
        return self._structure

    @property
    def family(self) -> Family:
        return self._family

    @property
    def pools_tokens(self) -> bool:
        """Whether the classifier reads a mean over tokens instead of the class token."""
        return self._family.pooling(self.module) != "token"

    def blocks(self) -> list[nn.Module]:
        return blocks_of(self.module, self._family)

    def weights(self) -> tuple[LayerWeights, ...]:
        family = self._family
        return tuple(
            LayerWeights(
                heads=head_count(block, family),
                qkv=_qkv(block, family),
                projection=_linear(block, family.projection),
                fc1=_linear(block, family.fc1),
                fc2=_linear(block, family.fc2),
                scale1=_gamma(block, family.layer_scale1),
                scale2=_gamma(block, family.layer_scale2),
            )
            for block in self.blocks()
        )

    @property
    def quantiser(self) -> Quantiser:
        """How files of int8 plans are made. Unless it was chosen, the one that suits this machine's processor."""
        return self._quantiser or Quantiser.here()

    def with_quantiser(self, quantiser: Quantiser) -> Self:
        """The same network, whose int8 files are made by `quantiser`."""
        same = copy.copy(self)
        same._quantiser = quantiser
        return same

    @property
    def rounding(self) -> Rounding | None:
        """None: it is an fp32 network."""
        if self.plan is None or self.plan.precision == "fp32":
            return None
        return Half() if self.plan.precision == "fp16" else Int8(self.int8_layers_of, self.quantiser)

    def outputs(self, images: Tensor, batch: int = 64) -> Tensor:
        """As its file rounds."""
        with nullcontext() if self.rounding is None else self.rounding.emulated(self.module):
            return outputs_of(self.module, images, batch)

    def int8_layers_of(self, module: nn.Module) -> Iterator[nn.Linear]:
        assert self.plan is not None
        return int8_layers(module, self._family, self.plan.blocks)

    def exact(self) -> "TorchNetwork":
        """The same network in fp32."""
        if self.rounding is None or self.plan is None:
            return self
        whole = copy.copy(self)
        blocks = tuple(dataclasses.replace(block, exact=()) for block in self.plan.blocks)
        whole.plan = dataclasses.replace(self.plan, blocks=blocks, precision="fp32")
        whole._structure = self._structure.in_precision("fp32")
        return whole

    def pruned(self, plan: Plan, statistics: Statistics | None) -> "TorchNetwork":
        small = copy.copy(self)
        small.module = prune(self.module, self._family, self._structure, plan).eval()
        small._structure, small.plan = plan.apply_to(self._structure), plan
        small.gates = None
        if statistics is not None:
            recover(small.readers(), plan, self.weights(), statistics.blocks)
        return small

    def pruned_blocks(self) -> list[PrunedBlock]:
        return [block for block in self.blocks() if isinstance(block, PrunedBlock)]

    def readers(self) -> list[Readers]:
        """Of each block of a pruned network."""
        found = []
        for block in self.blocks():
            if isinstance(block, PrunedBlock):
                attention, mlp = block.attention, block.mlp
                heads = (None, None) if attention is None else (attention.projection, attention.qkv)
                neurons = (None, None) if mlp is None else (mlp.fc2, mlp.fc1)
                found.append(Readers(heads[0], neurons[0], heads[1], neurons[1]))
            elif not isinstance(block, nn.LayerNorm | nn.Identity):  # the norm, if any, that `PrunedBlocks` took along
                found.append(Readers(*readers(block, self._family)))
        return found

    def reductions(self) -> list[TokenReduction]:
        """In the order of the blocks."""
        return [module for module in self.module.modules() if isinstance(module, TokenReduction)]

    def statistics(self, images: Tensor, kinds: Collection[Kind] = (), labels: Tensor | None = None) -> Statistics:
        """One pass over the images for the moments, and what each kind takes. labels (n,): only `taylor` reads them."""
        self.check_kinds(kinds)
        moments = self._moments(images)
        ways: dict[Kind, Callable[[], Sequence[Any]]] = {
            "dependence": lambda: self._dependence(images[:DEPENDENCE_IMAGES]),
            "attention": lambda: self._attention(images),
            "gates": self._gates,
            "inputs": lambda: self._input_moments(images),
        }
        found = {kind: way() for kind, way in ways.items() if kind in kinds}
        blocks = (
            BlockStatistics(
                projection.statistics(), neurons.statistics(), **{kind: of[i] for kind, of in found.items()}
            )
            for i, (projection, neurons) in enumerate(moments)
        )
        member_ways: MemberKinds = {
            "taylor": lambda: taylor_scores(self.module, self._family, self._structure, images, labels),
            "fisher": lambda: fisher_scores(self.module, self._family, self._structure, images),
            "deletion": lambda: deletion_scores(self.module, self._family, self._structure, images),
        }
        return add_member_scores(Statistics(tuple(blocks)), kinds, member_ways)

    def check_kinds(self, kinds: Collection[Kind]) -> None:
        """Raises: InvalidRequest for statistics that are taken of one row of plain blocks only, and this is no such network."""
        wanted = sorted(set(kinds) & PLAIN_KINDS)
        if wanted and (self._family.sliced or len(self._structure.stages) > 1):
            raise InvalidRequest(
                f"Statistics {', '.join(wanted)} are taken of plain vision transformers only, not of {self._family.title}. "
                "Use method 'joint', 'mdc' or 'up-vit', whose criteria work for all.",
                family=self._family.name, kinds=wanted,
            )  # fmt: skip

    def _gates(self) -> Sequence[Gates]:
        if self.gates is None:
            raise InvalidRequest("This network has no learned gates: train them first")
        return self.gates

    def _input_moments(self, images: Tensor) -> list[Inputs]:
        moments = self._moments(images, (self._family.qkv, self._family.fc1))
        return [Inputs(qkv.statistics(), fc1.statistics()) for qkv, fc1 in moments]

    def _moments(self, images: Tensor, paths: tuple[str, str] | None = None) -> list[tuple[Moments, Moments]]:
        """Of the inputs of two layers of each block; None: projection and fc2."""
        moments = [(Moments(), Moments()) for _ in self._structure.blocks]
        draw = torch.Generator().manual_seed(0)

        def record(block: int, side: int, x: Tensor) -> None:
            rows = x.reshape(-1, x.shape[-1])
            share = min(1.0, MOMENT_ROWS / (len(images) * self._structure.blocks[block].tokens))
            if share < 1:  # at random: every n-th row would be the same few positions of every image
                rows = rows[torch.randperm(len(rows), generator=draw)[: max(1, round(share * len(rows)))]]
            moments[block][side].add(rows)

        self._watch(record, images, paths=paths)
        return moments

    def _dependence(self, images: Tensor) -> list[Dependence]:
        outputs = output_kernel(self.outputs(images))
        heads: dict[int, Tensor] = {}
        found = []

        def record(block: int, side: int, x: Tensor) -> None:
            if side == 0:
                count = self._structure.blocks[block].attention.heads  # type: ignore[union-attr]
                heads[block] = _per_image(x, len(images)).unflatten(-1, (count, -1)).mean(-1)
            else:
                found.append(dependence(heads.pop(block), _per_image(x, len(images)), outputs))

        self._watch(record, images, batch=len(images))
        return found

    def _attention(self, images: Tensor) -> list[AttentionStatistics]:
        grid, prefix = self._family.grid(self.module), self._structure.prefix
        return attention_statistics(
            self.blocks(), self._family, grid, prefix, lambda: self.outputs(images, ATTENTION_BATCH)
        )

    def _watch(
        self, record: Callable[[int, int, Tensor], None], images: Tensor, batch: int = 32,
        paths: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Calls record(block, side, input) for the inputs of two layers, of projection (side 0) and fc2 (side 1)."""
        hooks = []
        for index, block in enumerate(self.blocks()):
            for side, path in enumerate(paths or (self._family.projection, self._family.fc2)):

                def hook(_m: nn.Module, inputs: tuple[Tensor], index: int = index, side: int = side) -> None:
                    record(index, side, inputs[0])

                hooks.append(part(block, path).register_forward_pre_hook(hook))
        try:
            self.outputs(images, batch)
        finally:
            for handle in hooks:
                handle.remove()

    def export(self, path: Path, batch: int | None, form: Form = "standard") -> None:
        whole = self.plan is None and not self._family.sliced
        module = self.pruned(identity(self._structure), None).module if whole else copy.deepcopy(self.module)
        fold_scales(module)
        form = form if self.rounding is None else "standard"
        as_rows(module, list(zip(block_lists(module, self._family), self._structure.stages, strict=True)), batch, form)
        self._write(module, path, batch)

    def _write(self, module: nn.Module, path: Path, batch: int | None) -> None:
        """Of a copy of the module in its exported form."""
        rounding = self.rounding
        if rounding is not None:
            rounding.prepare(module)
        finish = None if rounding is None else rounding.finish
        export_onnx(module, self._structure.image, self.preprocessing, path, batch, finish)


def outputs_of(module: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Computed where the module's parameters are; the answer lies where the images do."""
    device = next(module.parameters()).device
    with torch.inference_mode():
        chunks = (module(chunk.to(device)) for chunk in images.split(batch))
        return torch.cat([answer.to(images.device) for answer in chunks])


def _gamma(block: nn.Module, path: str) -> Tensor | None:
    gamma = getattr(optional_part(block, path), "gamma", None)
    return gamma.detach() if isinstance(gamma, Tensor) else None


def _per_image(x: Tensor, images: int) -> Tensor:
    """Windows of one image side by side: (images, N, D)."""
    return x.reshape(images, -1, x.shape[-1])


def _qkv(block: nn.Module, family: Family) -> nn.Linear:
    """The layer that makes q, k and v; where they are made by several, one with their rows in that order."""
    layers = {path: _linear(block, path) for path in family.attention_layers}
    if list(family.attention_layers.values()) == ["qkv"]:
        return layers[family.qkv]
    weight = torch.cat([_rows_of(layers, family, name, "weight") for name in "qkv"])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joined.weight = nn.Parameter(weight)
    if next(iter(layers.values())).bias is not None:
        joined.bias = nn.Parameter(torch.cat([_rows_of(layers, family, name, "bias") for name in "qkv"]))
    return joined


def _rows_of(layers: dict[str, nn.Linear], family: Family, name: str, kind: str) -> Tensor:
    """The rows of weight or bias that make "q", "k" or "v"."""
    path = family.layer_of(name)
    made, tensor = family.attention_layers[path], getattr(layers[path], kind)
    rows: Tensor = tensor.detach().chunk(len(made))[made.index(name)]
    return rows


def _linear(block: nn.Module, path: str) -> nn.Linear:
    found = part(block, path)
    assert isinstance(found, nn.Linear)
    return found
