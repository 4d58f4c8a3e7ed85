"""Refuses an ONNX file whose weights hold NaN or infinity: every output would be NaN, and every ranking too."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from models.errors import DamagedFile

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
WEIGHTED = ("MatMul", "Gemm", "Conv", "LayerNormalization", "BatchNormalization", "Mul", "Div")
"""Operators that multiply a tensor with others. An attention mask may hold infinity; it is added or selected."""


def check_finite(model: ModelProto) -> None:
    """Raises: DamagedFile if a constant holds NaN, or if a weight or a bias holds infinity."""
    readers: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        for name in node.input:
            readers[name].add(node.op_type)
    broken = [name for name, tensor in _constants(model) if _is_broken(tensor, readers[name])]
    if broken:
        raise DamagedFile(
            f"The ONNX file has NaN or infinite weights in the tensor {broken[0][:200]!r} and in {len(broken) - 1} more"
            " tensors. All weights must be finite. Use another file.",
            tensor=broken[0][:200],
        )


def _constants(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")


def _is_broken(tensor: TensorProto, readers: set[str]) -> bool:
    if tensor.data_type not in FLOATS:
        return False
    values = numpy_helper.to_array(tensor)
    if np.isnan(values).any():
        return True
    is_weight = bool(readers.intersection(WEIGHTED)) or (values.ndim == 1 and values.size > 1)
    return is_weight and not np.isfinite(values).all()
