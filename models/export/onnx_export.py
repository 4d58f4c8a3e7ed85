"""ONNX export, and the comparison of a file with PyTorch (parity). Only this module calls torch's exporter.

It uses the TorchScript exporter on purpose: it needs one sixth of the time of the newer exporter, and it folds static
shapes into the graph. The export runs once for each delivered or verified file, never inside a trial.
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
from models.export.rename_values import rename_values
from models.export.share_weights import share_equal_weights
from models.export.signature import INPUT, Signature, as_logits, judged_output, judged_scores
from models.record import Record
from models.statistics.class_logits import class_logits

OPSET = 20
RELATIVE_TOLERANCE = 1e-3
EXACT_PRODUCTS = "session.x64quantprecision"
"""Session option of ONNX Runtime: use unsigned weights in 8-bit products where products of signed weights saturate."""


def export_onnx(
    module: nn.Module,
    image: tuple[int, int, int],
    preprocessing: Preprocessing,
    path: Path,
    *,
    batch: int | None,
    signature: Signature | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Export a network from images to the outputs of `signature` with `write_onnx`.

    batch: a fixed batch size. None: the batch dimension is free.
    """
    example = torch.zeros(batch or 2, *image)
    write_onnx(
        module, example, signature or Signature(), preprocessing, path=path, free_batch=batch is None, finish=finish
    )


def write_onnx(
    module: nn.Module,
    images: Tensor,
    signature: Signature,
    preprocessing: Preprocessing,
    *,
    path: Path,
    free_batch: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Export a module and write `path` atomically.

    Above 2 GiB, the weights are in a second file (models/export/onnx_store.py).

    finish: converts the file before it appears at `path` (models/quantization/number_formats.py).
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-", suffix=UNFINISHED) as folder:
        plain = Path(folder) / "model.onnx"
        names = {INPUT: signature.input, **{f"output_{i}": name for i, name in enumerate(signature.outputs)}}
        to_onnx(module, {INPUT: images}, list(names)[1:], plain, free_batch=free_batch)
        if finish is not None:
            finish(plain)
        model = onnx.load(plain)
    onnx.helper.set_model_props(model, preprocessing.to_metadata() | signature.to_metadata())
    share_equal_weights(model)
    rename_values(model, names)
    save_onnx(model, path)


def to_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path, *, free_batch: bool = False
) -> None:
    """Export a module with torch's exporter.

    Above 2 GiB, the exporter writes each weight to a separate file in the same folder.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)} if free_batch else None,
            dynamo=False,
        )


class OnnxFile:
    """A file that is open in ONNX Runtime, on the CPU.

    exact_products: 8-bit products are exact on every processor. Without this option, sums in 8-bit products saturate at
        16 bits on x86 processors without VNNI (models/quantization/int8.py). The default of ONNX Runtime, and so the
        behaviour that users get, is without it.
    """

    def __init__(self, path: Path, exact_products: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        if exact_products:
            options.add_session_config_entry(EXACT_PRODUCTS, "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in self._session.get_outputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._output, self._scores = judged_output(names, metadata), judged_scores(metadata)

    def outputs(self, images: Tensor, batch: int) -> Tensor:
        """Return the judged output, as logits or features.

        Images run in batches of a fixed size; the last batch is padded with zeros.
        """
        (entry,) = self._session.get_inputs()
        outputs = []
        for chunk in images.split(batch):
            fill = torch.zeros(batch - len(chunk), *chunk.shape[1:])
            full = torch.cat([chunk, fill]).numpy().astype(np.float32)
            outputs.append(torch.from_numpy(self._session.run([self._output], {entry.name: full})[0][: len(chunk)]))
        return as_logits(torch.cat(outputs), self._scores)


def run_onnx(path: Path, images: Tensor, batch: int, exact_products: bool = False) -> Tensor:
    """Return the logits (n, C) of one file. exact_products: see `OnnxFile`."""
    return OnnxFile(path, exact_products).outputs(images, batch)


@dataclass(frozen=True)
class Parity(Record):
    """Comparison of ONNX Runtime with PyTorch on the same images.

    max_relative: largest absolute difference of a logit, divided by the largest absolute logit.
    flips: number of images whose predicted class differs.
    """

    images: int
    max_abs: float
    max_relative: float
    flips: int

    @property
    def passed(self) -> bool:
        return self.max_relative <= RELATIVE_TOLERANCE


def relative_difference(expected: Tensor, got: Tensor) -> float:
    """Return the largest absolute difference, divided by the largest absolute expected value."""
    return float((expected - got).abs().max()) / max(float(expected.abs().max()), 1e-12)


def compare_outputs(expected: Tensor, got: Tensor) -> Parity:
    """Compare two sets of logits (n, C)."""
    difference = float((expected - got).abs().max())
    flips = int((class_logits(expected).argmax(1) != class_logits(got).argmax(1)).sum())
    return Parity(len(expected), difference, relative_difference(expected, got), flips)
