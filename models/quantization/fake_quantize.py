"""Fake quantisation to 8 bits in PyTorch: the arithmetic of the quantised file (models/quantization/int8.py).

Values are rounded as in the file, and products are computed in fp32. It is used in trials, where an export for each
trial would take too long, and for comparisons with the file.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.quantization.int8 import Quantiser


@contextmanager
def emulated(module: nn.Module, layers: Iterable[nn.Linear], quantiser: Quantiser) -> Iterator[None]:
    """Inside the block, `layers` of `module` have rounded weights and round their inputs.

    The module is changed in place, without a copy, because it may be large and other code may have hooks on it.
    """
    images = [1]
    handles = [module.register_forward_pre_hook(lambda _m, inputs: images.__setitem__(0, len(inputs[0])))]
    exact: list[tuple[nn.Linear, Tensor]] = []
    try:
        for layer in layers:
            exact.append((layer, layer.weight))
            rounded = rounded_weight(layer.weight.detach(), quantiser.weight_bits)
            layer.weight = nn.Parameter(rounded, requires_grad=False)
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _m, inputs: (rounded_inputs(inputs[0], images[0], quantiser.together),)
                )
            )
        yield
    finally:
        for layer, weight in exact:
            layer.weight = weight
        for handle in handles:
            handle.remove()


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """Round a weight (O, D) to `bits` bits, symmetrically, with one scale for each output."""
    most = 127 if bits == 8 else 64
    scale = weight.abs().amax(dim=1, keepdim=True) / most
    scale = torch.where(scale < torch.finfo(weight.dtype).tiny, torch.ones_like(scale), scale)
    return (weight / scale).round().clamp(-most, most) * scale


def rounded_inputs(x: Tensor, images: int, together: int = 1) -> Tensor:
    """Round inputs to uint8, as ONNX DynamicQuantizeLinear does.

    x: the inputs of `images` images; the first dim lists one image after the other. Each group of `together` images has
        one range, which includes zero.
    """
    rows = x.reshape(images, -1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if together > 1:
        low, high = (_of_runs(ends, together, sign) for ends, sign in ((low, -1), (high, 1)))
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).unsqueeze(1)
    zero = (-low.unsqueeze(1) / scale).round().clamp(0, 255)
    values = ((rows / scale).round() + zero).clamp(0, 255)
    return ((values - zero) * scale).reshape(x.shape)


def _of_runs(ends: Tensor, together: int, sign: int) -> Tensor:
    """Return for each image the extreme value of its group of `together` images. ends: (images,), all of one sign."""
    filled = functional.pad(sign * ends, (0, -len(ends) % together))
    return sign * filled.reshape(-1, together).amax(1).repeat_interleave(together)[: len(ends)]
