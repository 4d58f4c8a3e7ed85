"""The `Network` for models whose architecture is described by a family. Every part of such a model can be pruned."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from models.data.preprocessing import Preprocessing
from models.errors import InvalidRequest, UnsupportedModel
from models.export.inference_blocks import Form, as_rows, fold_scales
from models.families import FAMILIES, family_of
from models.families.describe import describe
from models.families.family import Family, block_lists, blocks_of, classifiers, part
from models.networks.block_layers import int8_layers
from models.networks.network import Network, outputs_of
from models.pruning.prune import prune
from models.pruning.pruned_blocks import PrunedBlock
from models.pruning.readers import Readers
from models.pruning.recovery import recover
from models.pruning.remembered_fits import RememberedFits
from models.pruning.sequential_recovery import can_recover_in_sequence, fit_classifiers, recover_in_sequence
from models.pruning.slice_blocks import readers
from models.pruning.spread import can_spread_width, spread
from models.rotation.bases import Bases, find_bases, fixed_stages
from models.rotation.bases import refusals as rotation_refusals
from models.rotation.rotate import rotate
from models.statistics.attention_statistics import AttentionStatistics, attention_statistics
from models.statistics.collect import Observer, Sides, collect
from models.statistics.gates import Gates
from models.statistics.gradient_scores import fisher_scores, taylor_scores
from models.statistics.layer_weights import LayerWeights, layer_weights
from models.statistics.leave_one_out import deletion_scores
from models.statistics.member_kinds import MemberKinds, add_member_scores
from models.statistics.statistics import Kind, Statistics
from models.structure import Layer, Plan, RotatedAxis, identity

PLAIN_KINDS: frozenset[Kind] = frozenset({"attention", "gates", "deletion"})
ATTENTION_BATCH = 16
"""Images per pass while attention is recorded.
It is small, because attention takes heads x tokens x tokens per image.
"""


class TorchNetwork(Network):
    def __init__(self, module: nn.Module, name: str, preprocessing: Preprocessing) -> None:
        """Raises: UnsupportedModel, with the reasons, if no family describes the module."""
        self.module = module.eval()
        self.preprocessing = preprocessing
        self._family = family_of(module)
        self._structure = describe(module, self._family, name, preprocessing.size[1:])
        self._fits = RememberedFits()
        self.gates: tuple[Gates, ...] | None = None
        """Values of the trained gates (models/training/train_gates.py), which are already folded into the weights."""
        self.threshold = 0.5
        """Smallest selector score of a kept token in the dynamic form (models/networks/dynamic_tokens.py)."""

    @property
    def family(self) -> Family:
        return self._family

    @property
    def pools_tokens(self) -> bool:
        return self._family.pooling(self.module) != "token"

    def with_gates(self, gates: Sequence[Gates]) -> Self:
        """Return the same network with the values of its trained gates."""
        same = copy.copy(self)
        same.gates = tuple(gates)
        return same

    def with_threshold(self, threshold: float) -> Self:
        """Return the same network with another threshold for the selector scores of its dynamic form."""
        same = copy.copy(self)
        same.threshold = threshold
        return same

    @property
    def not_rotated(self) -> dict[RotatedAxis, str]:
        return rotation_refusals(self.module, self._family, self._structure)

    @property
    def fixed_stages(self) -> dict[str, str]:
        return fixed_stages(self.module, self._family)

    def bases(self, images: Tensor) -> Bases | None:
        if not self.rotatable:
            return None
        return find_bases(self.module, self._family, self._structure, lambda module: outputs_of(module, images))

    def rotated(self, bases: Bases) -> Self:
        same = self.with_module(copy.deepcopy(self.module))
        rotate(same.module, self._family, self._structure, bases)
        same.rotation = bases
        name, size = self._structure.name, self.preprocessing.size[1:]
        same._structure = describe(same.module, self._family, name, size, free_widths=bool(bases.streams))
        return same

    @property
    def input_kinds(self) -> frozenset[Kind]:
        return frozenset({"inputs"})

    def blocks(self) -> list[nn.Module]:
        return blocks_of(self.module, self._family)

    def weights(self) -> tuple[LayerWeights, ...]:
        return layer_weights(self.blocks(), self._family)

    def int8_layers_of(self, module: nn.Module) -> Iterator[nn.Linear]:
        assert self.plan is not None
        return int8_layers(module, self._family, self.plan.blocks)

    def pruned(self, plan: Plan, statistics: Statistics | None) -> Self:
        small = copy.copy(self)
        small.module = prune(self.module, self._family, self._structure, plan).eval()
        small._structure, small.plan = plan.apply_to(self._structure), plan
        small.gates = None
        if statistics is not None:
            recover(
                small.readers(), plan, self.weights(), statistics.blocks, structure=self._structure, fits=self._fits
            )
        return small

    @property
    def recovers_in_sequence(self) -> bool:
        return self.plan is not None and can_recover_in_sequence(self.plan, self._structure)

    def recovered_in_sequence(self, dense: Self, images: Tensor) -> Self:
        assert self.recovers_in_sequence and self.plan is not None
        small = self.with_module(copy.deepcopy(self.module))
        undivided = dense.pruned(identity(dense.structure), None)
        recover_in_sequence(small.module, self.plan, undivided.module, images, tokens=dense.structure.tokens)
        heads = [classifiers(module, self._family) for module in (small.module, undivided.module)]
        fit_classifiers(small.module, undivided.module, list(zip(*heads, strict=True)), images)
        return small

    def spreads(self) -> Sequence[Self]:
        if (
            self.rotation is None
            or self.plan is None
            or self.plan.precision != "int8"
            or len(self._structure.stages) > 1
        ):
            return ()
        found = []
        for heads, width in ((True, False), (False, True), (True, True)):
            if not width or can_spread_width(self.module):
                same = self.with_module(copy.deepcopy(self.module))
                spread(same.module, self._family, heads=heads, width=width)
                found.append(same)
        return found

    def pruned_blocks(self) -> list[PrunedBlock]:
        return [block for block in self.blocks() if isinstance(block, PrunedBlock)]

    def readers(self) -> list[Readers]:
        """Return the layers of each block of a pruned network that recovery may refit."""
        found = []
        for block in self.blocks():
            if isinstance(block, PrunedBlock):
                attention, mlp = block.attention, block.mlp
                qkv = {} if attention is None else {"qkv": attention.qkv}
                neurons = (None, None) if mlp is None else (mlp.fc2, mlp.fc1)
                projection = None if attention is None else attention.projection
                found.append(Readers(projection, neurons[0], qkv, neurons[1]))
            elif not isinstance(
                block, nn.LayerNorm | nn.Identity
            ):  # skips the last norm, which `PrunedBlocks` may hold
                found.append(readers(block, self._family))
        return found

    def statistics(self, images: Tensor, kinds: Collection[Kind] = (), labels: Tensor | None = None) -> Statistics:
        self.check_kinds(kinds)
        found = collect(
            self._structure,
            images,
            self.outputs,
            self._observe,
            kinds=kinds,
            further={"attention": lambda: self._attention(images), "gates": self._gates},
        )
        of_members: MemberKinds = {
            "taylor": lambda: taylor_scores(self.module, self._family, self._structure, images, labels=labels),
            "fisher": lambda: fisher_scores(self.module, self._family, self._structure, images),
            "deletion": lambda: deletion_scores(self.module, self._family, self._structure, images),
        }
        return add_member_scores(found, kinds, of_members)

    def check_kinds(self, kinds: Collection[Kind]) -> None:
        """Raises: InvalidRequest if a statistic needs a plain transformer with one stage, and this network is none."""
        wanted = sorted(set(kinds) & PLAIN_KINDS)
        if wanted and (self._family.sliced or len(self._structure.stages) > 1):
            raise InvalidRequest(
                f"vitfit collects the statistics {', '.join(wanted)} only from plain vision transformers. This model"
                f" is a {self._family.title}. Use method 'joint', 'mdc' or 'up-vit', whose criteria work for all"
                " families.",
                family=self._family.name,
                kinds=wanted,
            )

    def _gates(self) -> Sequence[Gates]:
        if self.gates is None:
            raise InvalidRequest("This network has no learned gates. Use method 'vtp', which trains them.")
        return self.gates

    def _attention(self, images: Tensor) -> list[AttentionStatistics]:
        grid, prefix = self._family.grid(self.module), self._structure.prefix
        return attention_statistics(
            self.blocks(), self._family, grid, prefix, run=lambda: self.outputs(images, ATTENTION_BATCH)
        )

    def _observe(self, observer: Observer, images: Tensor, batch: int, sides: Sides) -> None:
        """Run the images through the network, and pass the inputs of two layers of each block to the observer."""

        def hook_of(block: int, side: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
            return lambda _module, inputs: observer(block, side, inputs[0])

        hooks = [
            part(block, self._path_of(layer)).register_forward_pre_hook(hook_of(index, side))
            for index, block in enumerate(self.blocks())
            for side, layer in enumerate(sides)
        ]
        try:
            self.outputs(images, batch)
        finally:
            for handle in hooks:
                handle.remove()

    def _path_of(self, layer: Layer) -> str:
        """Return the path of a layer inside a block."""
        if layer == "qkv":
            return self._family.layer_of("q")
        return {"proj": self._family.projection, "fc1": self._family.fc1, "fc2": self._family.fc2}[layer]

    def export(self, path: Path, batch: int | None, form: Form = "standard") -> None:
        dense = self.plan is None and not self._family.sliced
        module = self.pruned(identity(self._structure), None).module if dense else copy.deepcopy(self.module)
        fold_scales(module)
        form = form if self.rounding is None else "standard"
        as_rows(module, list(zip(block_lists(module, self._family), self._structure.stages, strict=True)), batch, form)
        self.write(module, path, batch)


def of_known_family(network: Network, purpose: str) -> TorchNetwork:
    """Return `network` itself if a family describes its architecture.

    purpose: what needs the family; part of the error message.

    Raises: UnsupportedModel for a network that was read from its graph.
    """
    if isinstance(network, TorchNetwork):
        return network
    name = network.structure.name
    raise UnsupportedModel(
        f"The model {name} is a graph model, but {purpose} needs a model of a known family. Use a model of one of these"
        f" families: {', '.join(family.title for family in FAMILIES.values())}.",
        reasons=[f"{purpose} needs a known family"],
    )
