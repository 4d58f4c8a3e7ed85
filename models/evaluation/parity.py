"""Does the exported file give what PyTorch gives? Once with each side free to choose tokens, once with the choice forced.

A token near the cut may fall on either side by rounding alone. Forced, both sides keep the tokens that PyTorch chose and
the difference is arithmetic; free, the delivered file runs as it is and images whose kept sets differ are counted.

An 8-bit file rounds everything to 256 steps, and a difference in the seventh digit may become one of a step: no bound on
logits holds. So the network is compared before it is quantised, by the same rule as any other; and the quantised file
with the arithmetic that it is meant to have (models/quantization/fake_quantize.py), by its answers, with its own tokens and with given ones.
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
from models.export.onnx_export import INPUT, OUTPUT, Parity, compare_outputs, run_onnx, to_onnx
from models.networks.network import Network
from models.pruning.token_reduction import TokenReduction, all_recorded
from models.record import Record

EXACT_IMAGES = 64
SAME_ANSWERS, ACCURACY = 0.97, 0.01
"""Of an 8-bit file: the least share of images with the answer of its emulation, and the most that their accuracies differ."""


@dataclass(frozen=True)
class QuantisedParity(Record):
    """An 8-bit file beside its emulation. clear: images whose answer quantisation leaves no doubt of. same_answers: share of
    those (without classes: mean cosine of all features). accuracy_file, accuracy_emulated: None without labels."""

    images: int
    clear: int
    same_answers: float
    max_relative: float
    accuracy_file: float | None
    accuracy_emulated: float | None
    forced_same_answers: float | None = None
    """As same_answers, of EXACT_IMAGES images at most, with the tokens given that the emulation keeps; None where all stay."""
    flipped_sets: int | None = None
    """Of these images, those of which the file and its emulation keep different tokens."""

    @property
    def passed(self) -> bool:
        apart = abs((self.accuracy_file or 0.0) - (self.accuracy_emulated or 0.0))
        same = enough_same(self.same_answers, self.clear) and apart <= max(ACCURACY, 1.01 / self.images)
        forced = self.forced_same_answers
        return same and (forced is None or enough_same(forced, min(self.clear, EXACT_IMAGES)))


@dataclass(frozen=True)
class ParityReport(Record):
    """free: the delivered file; of an 8-bit one, the file before it was quantised. forced: the same network with given
    tokens; None where no tokens are removed.

    flipped_sets: images for which the two runtimes keep different tokens; None likewise. quantised: of an 8-bit file.
    """

    free: Parity
    forced: Parity | None
    flipped_sets: int | None
    quantised: QuantisedParity | None = None

    @property
    def passed(self) -> bool:
        """The arithmetic agrees; and so does the delivered file, unless some kept set was flipped by rounding."""
        if self.quantised is not None and not self.quantised.passed:
            return False
        if self.forced is None:
            return self.free.passed
        return self.forced.passed and (self.free.passed or bool(self.flipped_sets))


def check_quantised(network: Network, file: Path, batch: int, data: Batch) -> ParityReport:
    """Of a `network` that is not in fp32, and its file. data: as many images as the answers shall be compared on; of the first of them
    the network in fp32 is checked as any other."""
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
    """What the quantised network answers in ONNX Runtime with the tokens that its emulation keeps; and for how many images it
    would keep others."""
    rounding = network.rounding
    assert rounding is not None
    probe, marked = TokenProbe(copy.deepcopy(network.module)), copy.deepcopy(network.module)
    with torch.inference_mode(), rounding.emulated(probe.module):
        _, *chosen = probe(images)
    rounding.prepare(marked)
    with tempfile.TemporaryDirectory() as folder:
        _, *theirs = _run_probe(TokenProbe(marked), images, Path(folder) / "free.onnx", [], batch, rounding.finish)
        answers = _run_probe(TokenProbe(marked), images, Path(folder) / "forced.onnx", chosen, batch, rounding.finish)[
            0
        ]
    return torch.from_numpy(answers), _flipped(chosen, theirs)


def same_clear_answers(mine: Tensor, fp32: Tensor, others: Tensor, classes: int) -> tuple[int, float]:
    """Of two 8-bit networks: images whose first answer leads the second by more than quantisation changed any of `mine`, and the
    share of them with the same answer. Logits (n, C); without classes features, of which all count and the cosine is taken."""
    clear = torch.ones(len(mine), dtype=torch.bool)
    if classes > 1:
        first, second = mine.topk(2, dim=1).values.T
        clear = first - second > (mine - fp32).abs().amax(dim=1)
    return int(clear.sum()), same_answer(mine[clear], others[clear], classes) if clear.any() else 1.0


def enough_same(share: float, clear: int) -> bool:
    """One image may differ, however few there are."""
    return share >= min(SAME_ANSWERS, 1 - 1.01 / max(clear, 1))


def check_parity(network: Network, file: Path, batch: int, images: Tensor) -> ParityReport:
    """images (n, C, H, W) as the network takes them; `file` is the exported network, for `batch` images per run."""
    free = compare_outputs(network.outputs(images, batch), run_onnx(file, images, batch))
    if not network.reductions():
        return ParityReport(free, None, None)
    probe = TokenProbe(copy.deepcopy(network.module))
    with torch.inference_mode():
        outputs, *chosen = probe(images)
    with tempfile.TemporaryDirectory() as folder:
        _, *theirs = _run_probe(probe, images, Path(folder) / "free.onnx", [], len(images))
        forced = _run_probe(probe, images, Path(folder) / "forced.onnx", chosen, len(images))[0]
    return ParityReport(free, compare_outputs(outputs, torch.from_numpy(forced)), _flipped(chosen, theirs))


def _flipped(mine: list[Tensor], others: list[np.ndarray]) -> int:
    """Images whose kept sets differ in any stage."""
    flipped = torch.zeros(len(mine[0]), dtype=torch.bool)
    for one, other in zip(mine, others, strict=True):
        flipped |= (one.sort(dim=1).values != torch.from_numpy(other).sort(dim=1).values).any(dim=1)
    return int(flipped.sum())


class TokenProbe(nn.Module):
    """The network with its token choices as further outputs, and as inputs where they are given."""

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
    batch: int,
    finish: Callable[[Path], None] | None = None,
) -> list[np.ndarray]:
    """Outputs and kept tokens of all images, `batch` in a run. finish: what is done to the file."""
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
