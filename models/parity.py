"""Does the exported file give what PyTorch gives? Once with each side free to choose tokens, once with the choice forced.

A token near the cut may fall on either side by rounding alone. Forced, both sides keep the tokens that PyTorch chose and
the difference is arithmetic; free, the delivered file runs as it is and images whose kept sets differ are counted.
"""

import copy
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from models.export import INPUT, OPSET, OUTPUT, Parity, compare_outputs, run_onnx
from models.record import Record
from models.reduction import TokenReduction
from models.torch_network import TorchNetwork


@dataclass(frozen=True)
class ParityReport(Record):
    """free: the delivered file. forced: the same network with given tokens; None where no tokens are removed.

    flipped_sets: images for which the two runtimes keep different tokens; None likewise.
    """

    free: Parity
    forced: Parity | None
    flipped_sets: int | None

    @property
    def passed(self) -> bool:
        """The arithmetic agrees; and so does the delivered file, unless some kept set was flipped by rounding."""
        if self.forced is None:
            return self.free.passed
        return self.forced.passed and (self.free.passed or bool(self.flipped_sets))


def check_parity(network: TorchNetwork, file: Path, batch: int, images: Tensor) -> ParityReport:
    """images (n, C, H, W) as the network takes them; `file` is the exported network, for `batch` images per run."""
    free = compare_outputs(network.outputs(images, batch), run_onnx(file, images, batch))
    if not network.reductions():
        return ParityReport(free, None, None)
    probe = TokenProbe(copy.deepcopy(network.module))
    with torch.inference_mode():
        outputs, *chosen = probe(images)
    with tempfile.TemporaryDirectory() as folder:
        theirs = _run_probe(probe, images, Path(folder) / "free.onnx", [])
        flipped = torch.zeros(len(images), dtype=torch.bool)
        for mine, other in zip(chosen, theirs[1:], strict=True):
            flipped |= (mine.sort(dim=1).values != torch.from_numpy(other).sort(dim=1).values).any(dim=1)
        forced = _run_probe(probe, images, Path(folder) / "forced.onnx", chosen)[0]
    return ParityReport(free, compare_outputs(outputs, torch.from_numpy(forced)), int(flipped.sum()))


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
        chosen: list[Tensor] = []
        for reduction, index in zip(self._reductions, forced or [None] * len(self._reductions), strict=True):
            reduction.forced, reduction.chosen = index, chosen
        return (self.module(images), *chosen)


def _run_probe(probe: TokenProbe, images: Tensor, path: Path, forced: list[Tensor]) -> list[np.ndarray]:
    inputs = {INPUT: images, **{f"tokens{i}": index for i, index in enumerate(forced)}}
    outputs = [OUTPUT, *(f"kept{i}" for i in range(probe.stages))]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            probe.eval(), tuple(inputs.values()), str(path), input_names=list(inputs), output_names=outputs,
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items() if name in wanted})
    return [np.asarray(value) for value in found]
