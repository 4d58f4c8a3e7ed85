"""The dynamic form of a network with token selectors: the number of kept tokens depends on the image.

Each image keeps the tokens whose T_keep is at least a threshold. The threshold is 1/2, as in training, or higher if a
budget requires it. At least one patch token is kept. There is no fused token until a token has been removed.

The dynamic form processes one image per run. The number of tokens is then the length of a tensor, and the standard ONNX
operators NonZero and Gather suffice for the export. For each image the network has a static structure (`structure_of`).
The latency over many images is therefore a weighted mean of the prices of static structures.
"""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from models.errors import InvalidRequest
from models.export.inference_blocks import fold_scales
from models.export.onnx_export import RELATIVE_TOLERANCE, relative_difference, write_onnx
from models.families.family import replace_part
from models.networks.torch_network import TorchNetwork
from models.pruning import token_reducers as tokens
from models.pruning.pruned_blocks import PrunedBlock, PrunedBlocks
from models.pruning.token_reduction import TokenReduction, TokenState
from models.record import Record
from models.structure import PACKAGING, Plan, Structure

KEPT = "kept_tokens"
"""Name of the file's second output: number of kept patch tokens after each reduction, int64 (stages,)."""


class DynamicBlocks(nn.Module):
    """Replaces the pruned blocks in a network. Input and output hold the tokens of one image, (1, N, D)."""

    def __init__(self, blocks: PrunedBlocks, threshold: float) -> None:
        super().__init__()
        self.blocks, self.threshold = blocks, threshold
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept = []
        prefix = self.blocks.prefix
        gone, state = x.new_zeros(()), TokenState()
        for block in self.blocks.blocks():

            def reduce(x: Tensor, block: PrunedBlock = block) -> Tensor:
                nonlocal gone
                assert block.reduction is not None
                x, gone = self._reduced(block.reduction, x, gone)
                return x

            def attend(x: Tensor, block: PrunedBlock = block) -> Tensor:
                return block.attend(x, state)

            x = block.walk(x, reduce, attend, block.transform)
        sizes = torch.ones_like(x[:, prefix:, 0])
        package = (torch.arange(sizes.shape[1], device=x.device) == self.kept[-1]).to(x.dtype)
        return self.blocks.leave(x, sizes + package * (gone - 1))

    def _reduced(self, reduction: TokenReduction, x: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
        """Apply one reduction. Return the remaining tokens and the number of tokens removed so far (a scalar
        tensor).

        The fused token is treated as one more candidate, which is kept if any token has been removed. The exported
        graph therefore needs no branch for the case without a fused token.
        """
        prefix = self.blocks.prefix
        patches = self.kept[-1] if self.kept else x.new_tensor(reduction.patches, dtype=torch.int64)
        place = torch.arange(x.shape[1] - prefix, device=x.device)
        body, package = x[:, prefix:][:, place < patches], x[:, prefix:][:, place >= patches]
        assert reduction.selector is not None
        scores = reduction.selector(body)[0]
        best = torch.arange(scores.shape[0], device=x.device) == scores.argmax()
        keep = (scores >= self.threshold) | best
        self.kept.append(keep.sum())
        if reduction.reducer not in PACKAGING:
            return torch.cat([x[:, :prefix], body[:, keep], package], dim=1), gone
        weights = scores if reduction.reducer == "weighted" else torch.ones_like(scores)
        shares = (weights / weights.mean().clamp(min=1e-12)).clamp(min=tokens.LEAST_SHARE)
        shares = (shares * (~keep).to(shares.dtype)).unsqueeze(-1)
        count = shares.sum() + gone
        total = (shares * body[0]).sum(dim=0) + package[0].sum(dim=0) * gone
        gone = gone + (~keep).to(gone.dtype).sum()
        candidates = torch.cat([body[0], (total / count.clamp(min=1e-6)).unsqueeze(0)])
        staying = torch.cat([keep, (gone > 0).unsqueeze(0)])
        return torch.cat([x[:, :prefix], candidates[staying].unsqueeze(0)], dim=1), gone


class DynamicNetwork(nn.Module):
    """Maps image (1, C, H, W) to logits (1, classes) and the number of patch tokens kept per stage, int64 (stages,)."""

    def __init__(self, network: TorchNetwork) -> None:
        """Raises: InvalidRequest unless every reduction has a selector."""
        super().__init__()
        reductions = network.reductions()
        if not reductions or any(reduction.selector is None for reduction in reductions):
            raise InvalidRequest(
                "The network has no token reductions, or one of them has no token selector. The dynamic form needs"
                " token reductions that all have token selectors. Use method 'spvit', which trains token selectors."
            )
        self.module = copy.deepcopy(network.module).eval()
        path, blocks = next((p, m) for p, m in self.module.named_modules() if isinstance(m, PrunedBlocks))
        self._blocks = [DynamicBlocks(blocks, network.threshold)]
        replace_part(self.module, path, self._blocks[0])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.module(image)
        return logits, torch.stack(self._blocks[0].kept)


def export_dynamic(network: TorchNetwork, path: Path) -> None:
    """Write the dynamic form (`model.dynamic-tokens.onnx`) to `path` atomically.

    Raises: InvalidRequest, see `DynamicNetwork`.
    """
    dynamic = DynamicNetwork(network)
    fold_scales(dynamic)
    # the example image must keep some tokens and lose others; otherwise the tracer could take a mask for a constant
    example = torch.randn(1, *network.structure.image, generator=torch.Generator().manual_seed(0))
    names = dataclasses.replace(network.signature, outputs=(*network.signature.outputs, KEPT))
    write_onnx(dynamic, example, names, network.preprocessing, path=path)


def run_dynamic(network: TorchNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run the dynamic form in PyTorch, one image at a time.

    Return logits (n, classes) and kept tokens (n, stages).
    """
    dynamic = DynamicNetwork(network)
    with torch.inference_mode():
        answers = [dynamic(image.unsqueeze(0)) for image in images]
    return torch.cat([logits for logits, _ in answers]), torch.stack([kept for _, kept in answers])


def kept_distribution(network: TorchNetwork, images: Tensor) -> Tensor:
    """Return the number of patch tokens that each image keeps at each stage, int64 (n, stages)."""
    return run_dynamic(network, images)[1]


@dataclass(frozen=True)
class DynamicParity(Record):
    """Comparison of ONNX Runtime with PyTorch, one image at a time.

    max_relative: largest difference of a logit, divided by the largest logit of the image; the maximum over all images
    for which both runtimes keep the same number of tokens.
    other_counts: number of the other images, where rounding has moved a token across the threshold.
    """

    images: int
    max_relative: float
    other_counts: int

    @property
    def passed(self) -> bool:
        return self.max_relative <= RELATIVE_TOLERANCE and self.other_counts <= self.images // 10


def check_dynamic(network: TorchNetwork, file: Path, images: Tensor) -> DynamicParity:
    """Compare `file`, written by `export_dynamic`, with PyTorch. images: preprocessed, (n, C, H, W)."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    expected, counts = run_dynamic(network, images)
    largest, other = 0.0, 0
    for image, logits, kept in zip(images, expected, counts, strict=True):
        names = [network.signature.judged_output, KEPT]
        found, found_kept = session.run(names, {network.signature.input: image.unsqueeze(0).numpy()})
        if found_kept.tolist() != kept.tolist():
            other += 1
            continue
        largest = max(largest, relative_difference(logits, torch.from_numpy(found[0])))
    return DynamicParity(len(images), largest, other)


def structure_of(plan: Plan, original: Structure, kept: Sequence[int]) -> Structure:
    """Return the static structure for an image that keeps these numbers of patch tokens, one number per stage.

    A stage that removes nothing still has the cost of its selector.
    """
    blocks, counts, whole = [], iter(kept), original.tokens - original.prefix
    for block in plan.blocks:
        tokens_plan = block.tokens
        if tokens_plan is not None:
            count = int(next(counts))
            reducer = (
                tokens_plan.reducer if count < whole else "drop"
            )  # there is no fused token until a token has been removed
            tokens_plan = dataclasses.replace(tokens_plan, kept=count, reducer=reducer)
        blocks.append(dataclasses.replace(block, tokens=tokens_plan))
    return dataclasses.replace(plan, blocks=tuple(blocks)).shape_of(original)
