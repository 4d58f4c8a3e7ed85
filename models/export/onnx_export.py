"""ONNX export, the one place that calls torch's exporter, and the parity check that belongs to it.

The TorchScript exporter is used on purpose: it takes a sixth of the time of the newer one and its graphs have static
shapes folded. It runs once per delivered or verified file, never inside a trial.
"""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from models.atomic_write import UNFINISHED
from models.data.preprocessing import Preprocessing
from models.export.onnx_store import save_onnx
from models.record import Record

OPSET = 20
INPUT, OUTPUT = "images", "logits"
RELATIVE_TOLERANCE = 1e-3
EXACT_PRODUCTS = "session.x64quantprecision"
"""ONNX Runtime's session option: unsigned weights for 8-bit products, where signed ones saturate."""


def export_onnx(
    module: nn.Module, image: tuple[int, int, int], preprocessing: Preprocessing, path: Path, batch: int | None,
    finish: Callable[[Path], None] | None = None,
) -> None:  # fmt: skip
    """A network of images and logits, see `write_onnx`. batch None: a free batch dimension."""
    example = torch.zeros(batch or 2, *image)
    write_onnx(module, example, [OUTPUT], preprocessing, path, batch is None, finish)


def write_onnx(
    module: nn.Module, images: Tensor, outputs: Sequence[str], preprocessing: Preprocessing, path: Path,
    free_batch: bool = False, finish: Callable[[Path], None] | None = None,
) -> None:  # fmt: skip
    """Writes `path` at once, above 2 GiB with its data (models/export/onnx_store.py). finish: what is done to
    the file before (models/quantization/number_formats.py)."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-", suffix=UNFINISHED) as folder:
        plain = Path(folder) / "model.onnx"
        to_onnx(module, {INPUT: images}, outputs, plain, free_batch)
        if finish is not None:
            finish(plain)
        model = onnx.load(plain)
    onnx.helper.set_model_props(model, preprocessing.to_metadata())
    save_onnx(model, path)


def to_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path, free_batch: bool = False
) -> None:  # fmt: skip
    """What torch's exporter makes of a module; above 2 GiB with a file for each weight beside it."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), tuple(inputs.values()), str(path), input_names=list(inputs), output_names=list(outputs),
            opset_version=OPSET, dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)} if free_batch else None,
            dynamo=False,
        )  # fmt: skip


class OnnxFile:
    """A file that is open in ONNX Runtime's CPU.

    exact_products: 8-bit products are exact on every processor. Without it, x86 processors without VNNI lose what does
    not fit into 16 bits (models/quantization/int8.py); ONNX Runtime's default, so what users get, is without it.
    """

    def __init__(self, path: Path, exact_products: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        if exact_products:
            options.add_session_config_entry(EXACT_PRODUCTS, "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def outputs(self, images: Tensor, batch: int) -> Tensor:
        """Logits, in fixed batches (the last one is filled up with zeros)."""
        outputs = []
        for chunk in images.split(batch):
            fill = torch.zeros(batch - len(chunk), *chunk.shape[1:])
            full = torch.cat([chunk, fill]).numpy().astype(np.float32)
            outputs.append(torch.from_numpy(self._session.run([OUTPUT], {INPUT: full})[0][: len(chunk)]))
        return torch.cat(outputs)


def run_onnx(path: Path, images: Tensor, batch: int, exact_products: bool = False) -> Tensor:
    """Logits (n, C) of one file. exact_products: see `OnnxFile`."""
    return OnnxFile(path, exact_products).outputs(images, batch)


@dataclass(frozen=True)
class Parity(Record):
    """ONNX Runtime beside PyTorch on the same images.

    max_relative: largest difference of a logit over the largest logit of the batch.
    flips: images whose predicted class differs.
    """

    images: int
    max_abs: float
    max_relative: float
    flips: int

    @property
    def passed(self) -> bool:
        return self.max_relative <= RELATIVE_TOLERANCE


def compare_outputs(expected: Tensor, got: Tensor) -> Parity:
    """expected, got: logits (n, C)."""
    difference = float((expected - got).abs().max())
    flips = int((expected.argmax(1) != got.argmax(1)).sum())
    return Parity(len(expected), difference, difference / max(float(expected.abs().max()), 1e-12), flips)
