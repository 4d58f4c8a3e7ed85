"""8-bit files, made by ONNX Runtime's own quantiser.

Quantisation is dynamic. Weights are int8, symmetric, with one scale for each column. Activations are converted to uint8
at run time, with one scale for each tensor of a run. The file needs no calibration, and uses only operators of the ONNX
standard (DynamicQuantizeLinear, MatMulInteger).

The fp32 file that is quantised has the standard form. The fused attention operator of the runtime accepts no 8-bit
weights if q, k and v have different dims, and in fp32 it costs more than it saves (docs/latency.md). The patch
embedding, the classifier and products of two activations stay in fp32.
"""

import functools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor, nn

from models.export.onnx_store import is_large
from models.families.family import replace_part

MARK = "int8"
MARKED = re.compile(rf"/{MARK}(_\d+)?/")
"""Matches the mark in the name of a node. The exporter adds a number if several modules have the same name."""


@dataclass(frozen=True)
class Quantiser:
    """How files are quantised.

    weight_bits: 8, or 7 for processors whose 8-bit products saturate.
    together: number of images in one run. They share the ranges of their activations.
    """

    weight_bits: int = 8
    together: int = 1

    @classmethod
    def here(cls, together: int = 1) -> "Quantiser":
        """Return the quantiser whose files the processor of this machine computes exactly."""
        return cls(7 if saturates() else 8, together)


class Marked(nn.Linear):
    """A linear layer whose exported product has `MARK` in its name. It shares the weights of the original layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.add_module(MARK, linear)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.get_submodule(MARK)(x)
        return made


def mark(module: nn.Module, layers: Iterable[nn.Linear]) -> None:
    """Replace the given layers of `module` by marked layers, in place. Use it on a copy for the export."""
    wanted = {id(layer) for layer in layers}
    for path, found in list(module.named_modules()):
        if id(found) in wanted and isinstance(found, nn.Linear):
            replace_part(module, path, Marked(found))


def quantize_file(path: Path, weight_bits: int) -> None:
    """Quantise the marked products of an fp32 file, in place and atomically."""
    model = onnx.load(path)
    names = [node.name for node in model.graph.node if MARKED.search(node.name)]
    if not names:  # the quantiser would quantise all nodes if the list were empty
        return
    add_pre_process_metadata(model)  # says that shapes and constants are already folded
    beside = path.with_suffix(".int8.part")
    # The quantiser splits a Gemm into a MatMul, whose name has the suffix "_MatMul", and an Add.
    quantize_dynamic(
        model,
        beside,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=weight_bits < 8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=[*names, *(f"{name}_MatMul" for name in names)],
        use_external_data_format=is_large(model),
    )
    os.replace(beside, path)


@functools.cache
def saturates() -> bool:
    """Return whether 8-bit products on this machine saturate at 16 bits, as on x86 processors without VNNI."""
    inner, columns = 64, 16
    weights = np.full((inner, columns), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [None, inner])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [None, columns])],
        [onnx.numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made = session.run(None, {"a": np.full((8, inner), 255, np.uint8)})[0]
    return bool((made != 255 * 127 * inner).any())
