"""Checks that the exported file gives the same outputs as PyTorch.

Rounding alone can decide whether a token with a score near the cut is kept. The comparison is therefore made twice. In
the free run, the delivered file chooses its tokens itself, and images whose kept tokens differ are counted. In the
forced run, both runtimes keep the tokens that PyTorch chose, so that only arithmetic can differ.

An 8-bit file rounds every value to 256 steps. A difference in the seventh digit can then become a difference of a whole
step, so no bound on the logits holds. The check of such a file has two parts. First, the network is compared in fp32,
by the same rule as any other network. Second, the predicted classes of the quantised file are compared with those of
fake quantisation in PyTorch (models/quantization/fake_quantize.py), once with the file's own tokens and once with given
tokens.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from models.data.dataset import Batch
from models.evaluation.metrics import correct, same_answer
from models.export.onnx_export import Parity, compare_outputs, run_onnx, to_onnx
from models.export.signature import INPUT, OUTPUT
from models.networks.network import Network
from models.pruning.token_reduction import TokenReduction, all_recorded
from models.record import Record
from models.statistics.class_logits import class_logits

EXACT_IMAGES = 64
SAME_ANSWERS, ACCURACY = 0.97, 0.01
"""Limits for an 8-bit file, compared with its fake quantisation.

SAME_ANSWERS: smallest share of images with the same predicted class. ACCURACY: largest difference of the two
accuracies.
"""


@dataclass(frozen=True)
class QuantisedParity(Record):
    """Comparison of an 8-bit file with its fake quantisation in PyTorch.

    clear: number of images whose predicted class is certain despite quantisation; see `same_clear_answers`.
    same_answers: share of the clear images with the same predicted class (without classes: mean cosine of all
    features).
    accuracy_file, accuracy_emulated: accuracy of the file and of its fake quantisation; None without labels.
    """

    images: int
    clear: int
    same_answers: float
    max_relative: float
    accuracy_file: float | None
    accuracy_emulated: float | None
    forced_same_answers: float | None = None
    """Like same_answers, but the file is given the tokens that its fake quantisation keeps; on at most EXACT_IMAGES
    images.

    None if the network removes no tokens.
    """
    flipped_sets: int | None = None
    """Number of these images for which the file and its fake quantisation keep different tokens."""

    @property
    def passed(self) -> bool:
        apart = abs((self.accuracy_file or 0.0) - (self.accuracy_emulated or 0.0))
        same = enough_same(self.same_answers, self.clear) and apart <= max(ACCURACY, 1.01 / self.images)
        forced = self.forced_same_answers
        return same and (forced is None or enough_same(forced, min(self.clear, EXACT_IMAGES)))


@dataclass(frozen=True)
class ParityReport(Record):
    """Result of the parity check of one file.

    free: parity of the delivered file; for an 8-bit file, parity of the network's fp32 file.
    forced: parity of the same network with given tokens; None if the network removes no tokens.
    flipped_sets: number of images for which the two runtimes keep different tokens; None in the same case.
    quantised: the second part of the check; only for an 8-bit file.
    """

    free: Parity
    forced: Parity | None
    flipped_sets: int | None
    quantised: QuantisedParity | None = None

    @property
    def passed(self) -> bool:
        """True if the two runtimes agree with given tokens, and the delivered file agrees too.

        If rounding changed the kept tokens of some image, the delivered file need not agree.
        """
        if self.quantised is not None and not self.quantised.passed:
            return False
        if self.forced is None:
            return self.free.passed
        return self.forced.passed and (self.free.passed or bool(self.flipped_sets))


def check_quantised(network: Network, file: Path, batch: int, data: Batch) -> ParityReport:
    """Check the file of a `network` that is not in fp32.

    data: images for the comparison of predicted classes. The first EXACT_IMAGES of them are also used to check the
    network in fp32.
    """
    exact = network.exact()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "fp32.onnx"
        exact.export(before, batch)
        report = check_parity(exact, before, batch, data.images[:EXACT_IMAGES])
    classes = network.structure.classes
    expected, got = network.outputs(data.images), run_onnx(file, data.images, batch)
    accuracies = [
        None if data.labels is None or not classes else correct(outputs, data.labels) / len(outputs)
        for outputs in (got, expected)
    ]
    unrounded = exact.outputs(data.images)
    clear, same = same_clear_answers(expected, unrounded, got, classes)
    largest = compare_outputs(expected, got).max_relative
    forced, flipped = None, None
    if network.reductions():
        together = min(batch, len(data.images))
        shown = data.images[: max(1, min(EXACT_IMAGES, len(data.images)) // together) * together]
        outputs, flipped = _with_given_tokens(network, shown, together)
        forced = same_clear_answers(expected[: len(shown)], unrounded[: len(shown)], outputs, classes)[1]
    quantised = QuantisedParity(len(got), clear, same, largest, accuracies[0], accuracies[1], forced, flipped)
    return dataclasses.replace(report, quantised=quantised)


def _with_given_tokens(network: Network, images: Tensor, batch: int) -> tuple[Tensor, int]:
    """Run the quantised network in ONNX Runtime with the tokens that its fake quantisation keeps.

    Return the outputs, and the number of images for which the file would have kept other tokens.
    """
    rounding = network.rounding
    assert rounding is not None
    probe, marked = TokenProbe(copy.deepcopy(network.module)), copy.deepcopy(network.module)
    with torch.inference_mode(), rounding.emulated(probe.module):
        _, *chosen = probe(images)
    rounding.prepare(marked)
    with tempfile.TemporaryDirectory() as folder:
        _, *theirs = _run_probe(
            TokenProbe(marked), images, Path(folder) / "free.onnx", [], batch=batch, finish=rounding.finish
        )
        answers = _run_probe(
            TokenProbe(marked), images, Path(folder) / "forced.onnx", chosen, batch=batch, finish=rounding.finish
        )[0]
    return torch.from_numpy(answers), _flipped(chosen, theirs)


def same_clear_answers(mine: Tensor, fp32: Tensor, others: Tensor, classes: int) -> tuple[int, float]:
    """Compare the predicted classes of two 8-bit networks on the clear images.

    An image is clear if its highest logit in `mine` exceeds the second highest by more than quantisation changed any of
    its logits, that is, by more than the largest difference of `mine` and `fp32`.
    mine, fp32, others: logits (n, C), or features (n, D) without classes; then all images are clear.
    Return the number of clear images, and the share of them with the same class (without classes: the mean cosine).
    """
    clear = torch.ones(len(mine), dtype=torch.bool)
    if classes:
        first, second = class_logits(mine).topk(2, dim=1).values.T
        clear = first - second > (mine - fp32).abs().amax(dim=1)
    return int(clear.sum()), same_answer(mine[clear], others[clear], classes) if clear.any() else 1.0


def enough_same(share: float, clear: int) -> bool:
    """Return True if the share is high enough. One image may always differ, even if there are only a few images."""
    return share >= min(SAME_ANSWERS, 1 - 1.01 / max(clear, 1))


def check_parity(network: Network, file: Path, batch: int, images: Tensor) -> ParityReport:
    """Compare the outputs of `file` with those of PyTorch.

    file: the exported network, for `batch` images per run. images: preprocessed, (n, C, H, W).
    """
    free = compare_outputs(network.outputs(images, batch), run_onnx(file, images, batch))
    if not network.reductions():
        return ParityReport(free, None, None)
    probe = TokenProbe(copy.deepcopy(network.module))
    with torch.inference_mode():
        outputs, *chosen = probe(images)
    with tempfile.TemporaryDirectory() as folder:
        _, *theirs = _run_probe(probe, images, Path(folder) / "free.onnx", [], batch=len(images))
        forced = _run_probe(probe, images, Path(folder) / "forced.onnx", chosen, batch=len(images))[0]
    return ParityReport(free, compare_outputs(outputs, torch.from_numpy(forced)), _flipped(chosen, theirs))


def _flipped(mine: list[Tensor], others: list[np.ndarray]) -> int:
    """Return the number of images whose kept tokens differ in any stage."""
    flipped = torch.zeros(len(mine[0]), dtype=torch.bool)
    for one, other in zip(mine, others, strict=True):
        flipped |= (one.sort(dim=1).values != torch.from_numpy(other).sort(dim=1).values).any(dim=1)
    return int(flipped.sum())


class TokenProbe(nn.Module):
    """Wraps a network so that its token choices become additional outputs and, if they are given, additional inputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._reductions = [m for m in module.modules() if isinstance(m, TokenReduction)]

    @property
    def stages(self) -> int:
        return len(self._reductions)

    def forward(self, images: Tensor, *forced: Tensor) -> tuple[Tensor, ...]:
        with ExitStack() as stack:
            for reduction, index in zip(self._reductions, forced, strict=True) if forced else ():
                stack.enter_context(reduction.forced_to(index))
            choices = stack.enter_context(all_recorded(self._reductions))
            outputs = self.module(images)
        return (outputs, *(index for made in choices for index in made))


def _run_probe(
    probe: TokenProbe,
    images: Tensor,
    path: Path,
    forced: list[Tensor],
    *,
    batch: int,
    finish: Callable[[Path], None] | None = None,
) -> list[np.ndarray]:
    """Export the probe and run it in ONNX Runtime with `batch` images per run.

    finish: called with the path of the exported file before it is run.
    Return the outputs of all images, followed by the kept tokens of each stage.
    """
    inputs = {INPUT: images, **{f"tokens{i}": index for i, index in enumerate(forced)}}
    outputs = [OUTPUT, *(f"kept{i}" for i in range(probe.stages))]
    to_onnx(probe, {name: tensor[:batch] for name, tensor in inputs.items()}, outputs, path)
    if finish is not None:
        finish(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    runs = [
        session.run(None, {name: tensor[i : i + batch].numpy() for name, tensor in inputs.items() if name in wanted})
        for i in range(0, len(images), batch)
    ]
    return [np.concatenate(values) for values in zip(*runs, strict=True)]
