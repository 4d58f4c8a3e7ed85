"""An 8-bit network in PyTorch: the arithmetic of the quantised file (models/quantization/int8.py), rounded values in fp32 products.

For trials, which are many, and for comparisons with the file itself.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.quantization.int8 import Quantiser


@contextmanager
def emulated(module: nn.Module, layers: Iterable[nn.Linear], quantiser: Quantiser) -> Iterator[None]:
    """Meanwhile these layers of `module` have rounded weights and round their inputs. Without a copy: the network may be
    large, and others may be watching its modules."""
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
    """weight (O, D): symmetric, each output with a scale of its own."""
    most = 127 if bits == 8 else 64
    scale = weight.abs().amax(dim=1, keepdim=True) / most
    scale = torch.where(scale < torch.finfo(weight.dtype).tiny, torch.ones_like(scale), scale)
    return (weight / scale).round().clamp(-most, most) * scale


def rounded_inputs(x: Tensor, images: int, together: int = 1) -> Tensor:
    """x: of `images` images, one behind the other in the first dim. Each run of `together` images has one uint8 range, which
    holds zero (ONNX DynamicQuantizeLinear)."""
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
    """The outermost of each run, for each of its images. ends (images,), all of one sign."""
    filled = functional.pad(sign * ends, (0, -len(ends) % together))
    return sign * filled.reshape(-1, together).amax(1).repeat_interleave(together)[: len(ends)]
