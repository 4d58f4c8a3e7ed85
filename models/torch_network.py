"""The PyTorch `Network`."""

import copy
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from models.dependence import Dependence, dependence, output_kernel
from models.describe import describe, head_count
from models.export import export_onnx
from models.families import family_of
from models.family import part
from models.moments import Moments
from models.network import LayerWeights
from models.plan import Plan
from models.preprocessing import Preprocessing
from models.prune import prune
from models.pruned import PrunedAttention, PrunedBlock
from models.recover import recover
from models.reduction import TokenReduction
from models.statistics import BlockStatistics, Kind, Statistics
from models.structure import Structure

DEPENDENCE_IMAGES = 128
"""MDC uses one batch of 128 images."""
MOMENT_ROWS = 16384
"""Token vectors per layer that moments see: several times the widest layer, and affordable."""


class TorchNetwork:
    """A module with its structure. `pruned` returns a new one; nothing here changes `module`."""

    def __init__(self, module: nn.Module, name: str, preprocessing: Preprocessing) -> None:
        """Raises: UnsupportedModel with the reasons."""
        self.module = module.eval()
        self.preprocessing = preprocessing
        self._family = family_of(module)
        self._structure = describe(module, self._family, name)
        self.plan: Plan | None = None
        self.class_names: tuple[str, ...] | None = None

    @property
    def structure(self) -> Structure:
        return self._structure

    @property
    def pools_tokens(self) -> bool:
        """Whether the classifier reads a mean over tokens instead of the class token."""
        return self._family.pooling(self.module) != "token"

    def blocks(self) -> list[nn.Module]:
        return list(part(self.module, self._family.blocks).children())

    def weights(self) -> tuple[LayerWeights, ...]:
        family = self._family
        return tuple(
            LayerWeights(
                heads=head_count(block, family),
                qkv=_linear(block, family.qkv),
                projection=_linear(block, family.projection),
                fc1=_linear(block, family.fc1),
                fc2=_linear(block, family.fc2),
                scale1=_gamma(block, family.layer_scale1),
                scale2=_gamma(block, family.layer_scale2),
            )
            for block in self.blocks()
        )

    def outputs(self, images: Tensor, batch: int = 64) -> Tensor:
        with torch.inference_mode():
            return torch.cat([self.module(chunk) for chunk in images.split(batch)])

    def pruned(self, plan: Plan, statistics: Statistics | None) -> "TorchNetwork":
        small = copy.copy(self)
        small.module = prune(self.module, self._family, self._structure, plan).eval()
        small._structure, small.plan = plan.apply_to(self._structure), plan
        if statistics is not None:
            recover(small.pruned_blocks(), plan, self.weights(), statistics.blocks)
        return small

    def pruned_blocks(self) -> list[PrunedBlock]:
        return [block for block in self.blocks() if isinstance(block, PrunedBlock)]

    def reductions(self) -> list[TokenReduction]:
        """In the order of the blocks."""
        return [block.reduction for block in self.pruned_blocks() if block.reduction is not None]

    def statistics(self, images: Tensor, kinds: Collection[Kind] = ()) -> Statistics:
        """One pass over the images for the moments, and what each kind takes."""
        moments = self._moments(images)
        found = self._dependence(images[:DEPENDENCE_IMAGES]) if "dependence" in kinds else [None] * len(moments)
        blocks = (
            BlockStatistics(projection.statistics(), neurons.statistics(), block)
            for (projection, neurons), block in zip(moments, found, strict=True)
        )
        return Statistics(tuple(blocks))

    def _moments(self, images: Tensor) -> list[tuple[Moments, Moments]]:
        moments = [(Moments(), Moments()) for _ in self.blocks()]
        share = min(1.0, MOMENT_ROWS / (len(images) * self._structure.tokens))
        draw = torch.Generator().manual_seed(0)

        def record(block: int, side: int, x: Tensor) -> None:
            rows = x.reshape(-1, x.shape[-1])
            if share < 1:  # at random: every n-th row would be the same few positions of every image
                rows = rows[torch.randperm(len(rows), generator=draw)[: max(1, round(share * len(rows)))]]
            moments[block][side].add(rows)

        self._watch(record, images)
        return moments

    def _dependence(self, images: Tensor) -> list[Dependence]:
        outputs = output_kernel(self.outputs(images))
        heads: dict[int, Tensor] = {}
        found = []

        def record(block: int, side: int, x: Tensor) -> None:
            if side == 0:
                count = self._structure.blocks[block].attention.heads  # type: ignore[union-attr]
                heads[block] = x.unflatten(-1, (count, -1)).mean(-1)
            else:
                found.append(dependence(heads.pop(block), x, outputs))

        self._watch(record, images, batch=len(images))
        return found

    def _watch(self, record: Callable[[int, int, Tensor], None], images: Tensor, batch: int = 32) -> None:
        """Calls record(block, side, input) for the inputs of projection (side 0) and fc2 (side 1)."""
        hooks = []
        for index, block in enumerate(self.blocks()):
            for side, path in enumerate((self._family.projection, self._family.fc2)):

                def hook(_m: nn.Module, inputs: tuple[Tensor], index: int = index, side: int = side) -> None:
                    record(index, side, inputs[0])

                hooks.append(part(block, path).register_forward_pre_hook(hook))
        try:
            self.outputs(images, batch)
        finally:
            for handle in hooks:
                handle.remove()

    def export(self, path: Path, batch: int | None) -> None:
        module = copy.deepcopy(self.module)
        for part_of in module.modules():
            if isinstance(part_of, PrunedAttention):
                part_of.fold_scale()
        export_onnx(module, self._structure.image, self.preprocessing, path, batch)


def _gamma(block: nn.Module, path: str) -> Tensor | None:
    gamma = getattr(part(block, path), "gamma", None)
    return gamma.detach() if isinstance(gamma, Tensor) else None


def _linear(block: nn.Module, path: str) -> nn.Linear:
    found = part(block, path)
    assert isinstance(found, nn.Linear)
    return found
