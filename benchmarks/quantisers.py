"""Claim: on a CPU, ONNX Runtime's dynamic quantisation is faster and closer to fp32 than its static quantisation.

    python -m benchmarks.quantisers                                  digits and DeiT-T, 3 minutes

The models are unpruned, and all linear layers of their blocks are in 8 bits. One file is quantised dynamically, as
vitfit delivers it. The other files are quantised statically, with ranges from calibration images, one file for each
form that the runtime offers. The script measures all files of a model in turn beside the original in fp32. The error is
the mean difference of the outputs divided by their mean size (absolute values), on other images.
"""

import argparse
import copy
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor

from benchmarks.machine import machine
from latency.devices.setting import Setting
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import ratio
from models.export.onnx_export import export_onnx, run_onnx
from models.loading.load_model import open_model, untrained
from models.networks.network import Network
from models.quantization.int8 import MARKED, mark
from models.structure import identity

DIGITS = Path(__file__).parent / "digits"
CALIBRATION, IMAGES = 32, 64
EFFORT = Effort(seconds=20.0, width=0.02, processes=4, rounds=8)
U8, S8 = QuantType.QUInt8, QuantType.QInt8
FORMS: dict[str, tuple[QuantFormat, QuantType, QuantType, bool]] = {
    "static, QDQ, uint8 x int8 per channel": (QuantFormat.QDQ, U8, S8, True),
    "static, operators, uint8 x int8 per channel": (QuantFormat.QOperator, U8, S8, True),
    "static, QDQ, int8 x int8 per channel": (QuantFormat.QDQ, S8, S8, True),
    "static, QDQ, uint8 x uint8 per tensor": (QuantFormat.QDQ, U8, U8, False),
}


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Tensor) -> None:
        self._left: Iterator[dict[str, Any]] = iter([{"images": image[None].numpy()} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=["digits", "deit_tiny_patch16_224"])
    options = parser.parse_args()
    print("| model | file | of the latency in fp32 | error |\n|---|---|---|---|")
    for name in options.models:
        network = open_model(DIGITS) if name == "digits" else untrained(name)
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(name, network, Path(folder)):
                print(row, flush=True)
    print("\n" + ", ".join(machine().values()))


def rows(name: str, network: Network, folder: Path) -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, *network.structure.image, generator=generator)
    files = {"fp32": folder / "fp32.onnx", "dynamic": folder / "dynamic.onnx"}
    network.export(files["fp32"], 1, "cpu")
    small = in_int8(network)
    small.export(files["dynamic"], 1)
    for number, (form, how) in enumerate(FORMS.items()):
        files[form] = folder / f"static{number}.onnx"
        static(small, torch.randn(CALIBRATION, *images.shape[1:], generator=generator), files[form], *how)
    first, *others = Meter(Setting(threads=1)).measure(list(files.values()), EFFORT)
    exact = run_onnx(files["fp32"], images, 1)
    for form, found in zip(list(files)[1:], others, strict=True):
        error = (run_onnx(files[form], images, 1) - exact).abs().mean() / exact.abs().mean()
        kept = ratio(found, first)
        yield f"| {name} | {form} | {kept.value:.3f} ({kept.low:.3f} to {kept.high:.3f}) | {100 * error:.1f} % |"


def in_int8(network: Network) -> Network:
    return network.pruned(dataclasses.replace(identity(network.structure), precision="int8"), None)


def static(  # noqa: PLR0917  called with a tuple of its arguments
    network: Network,
    images: Tensor,
    path: Path,
    form: QuantFormat,
    inputs: QuantType,
    weights: QuantType,
    per_channel: bool,
) -> None:
    """Export a file with static quantisation of the same layers as in the dynamic file."""
    module = copy.deepcopy(network.module)
    mark(module, network.int8_layers_of(module))
    export_onnx(module, network.structure.image, network.preprocessing, path, batch=1)
    model = onnx.load(path)
    names = [node.name for node in model.graph.node if MARKED.search(node.name)]
    add_pre_process_metadata(model)
    quantize_static(
        model,
        path,
        Calibration(images),
        quant_format=form,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=per_channel,
        activation_type=inputs,
        weight_type=weights,
        nodes_to_quantize=names,
        extra_options={"WeightSymmetric": weights == S8, "ActivationSymmetric": inputs == S8},
    )


if __name__ == "__main__":
    main()
