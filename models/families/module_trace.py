"""Trace the modules of a model for one image: the order in which they run, and their input and output sizes.

The forward pass runs on torch's meta device, so no values are computed. So a trace of a large
model is fast too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from models.errors import UnsupportedModel
from models.structure import Op

SILENT = (nn.Identity, nn.Dropout, DropPath, nn.Flatten)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.BatchNorm1d)


@dataclass(frozen=True)
class Call:
    """One call of a module. The sizes are those of its first input and its first output, for one image."""

    path: str
    module: nn.Module
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def trace(model: nn.Module, image: tuple[int, int, int], watched: set[str]) -> list[Call]:
    """Return the calls of all leaf modules and of the `watched` modules, in the order in which they started.

    Raises: UnsupportedModel if the model does not run on such an image.
    """
    calls: list[Call | None] = []
    handles = []
    for path, module in model.named_modules():
        if not path or (path not in watched and any(True for _ in module.children())):
            continue
        places: list[int] = []

        def before(_m: nn.Module, _inputs: Any, places: list[int] = places) -> None:
            places.append(len(calls))
            calls.append(None)

        def after(m: nn.Module, inputs: Any, output: Any, path: str = path, *, places: list[int] = places) -> None:
            calls[places.pop()] = Call(path, m, _sizes(inputs), _sizes(output))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        with torch.no_grad():
            meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
            torch.func.functional_call(
                model, meta, (torch.zeros(1, *image, device="meta", dtype=next(model.parameters()).dtype),)
            )
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedModel(
            f"The model does not run on an image of size {image}, which is (channels, height, width)."
            f" The error is: {str(error)[:200]}. Choose another image size.",
            reasons=[f"it does not run on an image of size {image}"],
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return [call for call in calls if call is not None]


def _sizes(value: Any) -> tuple[int, ...]:
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def op_of(call: Call, name: str) -> Op | None:
    """Return the operation of one leaf module, or None if the module does nothing at inference.

    Raises: UnsupportedModel if the module has weights and its operation is not known.
    """
    module = call.module
    values = _product(call.outputs)
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, nn.Conv2d):
        groups = module.groups
        high, wide = module.kernel_size
        inner, cols = module.in_channels // groups * high * wide, module.out_channels // groups
        rows = values // module.out_channels
        return Op("conv", name, rows, cols, inner=inner, count=groups, weights=True, bias=bias)
    if isinstance(module, nn.Linear):
        rows = values // module.out_features
        return Op("matmul", name, rows, module.out_features, inner=module.in_features, weights=True, bias=bias)
    if isinstance(module, NORMS):
        weights = module.weight is not None
        cols = module.weight.numel() if weights else call.outputs[-1]
        return Op("norm", name, values // cols, cols, weights=weights, bias=bias)
    if any(True for _ in module.parameters(recurse=False)):
        raise UnsupportedModel(
            f"The module {name} is a {type(module).__name__}. vitfit cannot count the MACs of this operation. Use a"
            " model without it.",
            reasons=[f"operation {type(module).__name__} at {name}"],
        )
    if isinstance(module, SILENT) or not values:
        return None
    if isinstance(module, nn.AdaptiveAvgPool2d):
        _check_pooling(call, name)
    if values < _product(call.inputs):
        return Op("pool", name, _product(call.inputs) // call.outputs[1], call.outputs[1])
    return Op("activation", name, values // call.outputs[-1], call.outputs[-1])


def _check_pooling(call: Call, name: str) -> None:
    """Check that an adaptive pooling equals a plain pooling, because ONNX has no adaptive pooling.

    This holds if every output pools the same number of inputs.
    """
    found, wanted = call.inputs[-2:], call.outputs[-2:]
    if any(a % b for a, b in zip(found, wanted, strict=True)):
        raise UnsupportedModel(
            f"The module {name} pools a grid of {found[0]} x {found[1]} to {wanted[0]} x {wanted[1]}. ONNX allows this"
            " only if the first size is a multiple of the second size. Choose another image size.",
            reasons=["adaptive pooling of a grid whose size is not a multiple of the output size"],
        )


def table_of(name: str, parameter: Tensor) -> Op:
    """Return the operation of a parameter that no leaf module owns, such as positions or class tokens."""
    cols = parameter.shape[-1]
    return Op("table", name, parameter.numel() // cols, cols, weights=True)


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product if sizes else 0
