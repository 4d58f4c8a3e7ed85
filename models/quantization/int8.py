"""8-bit files, by ONNX Runtime's own quantiser.

Dynamic: weights are int8, symmetric, with a scale for each column; activations become uint8 as they come, with a scale for
each tensor of a run. The file needs no calibration and holds operators of ONNX alone (DynamicQuantizeLinear, MatMulInteger).
Its starting point is the standard form: the runtime's fused attention operator takes no 8-bit weights for q, k and v of
different dims, and left in fp32 it costs more than it saves (docs/latency.md). The patch embedding, the classifier and
products of activations stay in fp32.
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
"""In the name of a node; the exporter numbers modules that it cannot tell apart by their names."""


@dataclass(frozen=True)
class Quantiser:
    """How files are quantised. weight_bits: 7 for processors whose 8-bit products saturate. together: images of one run,
    which share the ranges of their activations."""

    weight_bits: int = 8
    together: int = 1

    @classmethod
    def here(cls, together: int = 1) -> "Quantiser":
        """The quantiser whose files this machine's processor computes exactly."""
        return cls(7 if saturates() else 8, together)


class Marked(nn.Linear):
    """A linear layer whose product has `MARK` in its name when it is exported. Shares the weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.add_module(MARK, linear)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.get_submodule(MARK)(x)
        return made


def mark(module: nn.Module, layers: Iterable[nn.Linear]) -> None:
    """Puts marked layers in the place of those given, in place. For exported copies."""
    wanted = {id(layer) for layer in layers}
    for path, found in list(module.named_modules()):
        if id(found) in wanted and isinstance(found, nn.Linear):
            replace_part(module, path, Marked(found))


def quantize_file(path: Path, weight_bits: int) -> None:
    """Quantises the marked products of an fp32 file, in place and at once."""
    model = onnx.load(path)
    names = [node.name for node in model.graph.node if MARKED.search(node.name)]
    if not names:  # which the quantiser would take for all
        return
    add_pre_process_metadata(model)  # shapes and constants are folded already
    beside = path.with_suffix(".int8.part")
    quantize_dynamic(
        model, beside, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=weight_bits < 8,
        weight_type=QuantType.QInt8, nodes_to_quantize=[*names, *(f"{name}_MatMul" for name in names)],  # of a Gemm
        use_external_data_format=is_large(model),
    )  # fmt: skip
    os.replace(beside, path)


@functools.cache
def saturates() -> bool:
    """Whether this machine's 8-bit products lose what does not fit into 16 bits, as those of processors without VNNI do."""
    inner, columns = 64, 16
    weights = np.full((inner, columns), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [None, inner])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [None, columns])],
        [onnx.numpy_helper.from_array(weights, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made = session.run(None, {"a": np.full((8, inner), 255, np.uint8)})[0]
    return bool((made != 255 * 127 * inner).any())
