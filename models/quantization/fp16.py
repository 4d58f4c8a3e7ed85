"""fp16 files, made by ONNX Runtime's own converter, and the same arithmetic in PyTorch (fake quantisation).

In the file, weights, activations and operators are fp16; images and outputs are fp32. GPUs add the products of a matrix
product in fp32 and round the result. The fake quantisation does the same: each operator rounds its inputs and its
outputs. Activations above 65,504 become infinite in both, so trials detect a network whose activations do not fit.
Parameters above 65,504 become 65,504 in both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from models.export.onnx_store import is_large, save_onnx

MOST = torch.finfo(torch.float16).max


def to_half(path: Path) -> None:
    """Convert an fp32 file to fp16, in place and atomically."""
    model = onnx.load(path)
    half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=is_large(model))
    save_onnx(half, path)


@contextmanager
def half_precision(module: nn.Module) -> Iterator[None]:
    """Inside the block, every operator of PyTorch rounds to fp16, and parameters are limited to +-65,504."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point() and t.numel()]
    large = [(t, t.detach().clone()) for t in tensors if t.detach().abs().max() > MOST]
    try:
        for tensor, _ in large:
            tensor.data.clamp_(-MOST, MOST)
        with _Half():  # type: ignore[no-untyped-call]
            yield
    finally:
        for tensor, kept in large:
            tensor.data.copy_(kept)


class _Half(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(
            result.alias_info is not None for result in func._schema.returns
        ):  # a view of what is rounded, or will be
            return func(*args, **(kwargs or {}))
        return tree_map(_rounded, func(*tree_map(_rounded, args), **tree_map(_rounded, kwargs or {})))


def _rounded(value: Any) -> Any:
    return value.half().to(value.dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value
