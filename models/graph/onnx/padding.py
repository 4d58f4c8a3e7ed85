"""Reads the padding of convolutions and pooling."""

import math
from collections.abc import Sequence

from torch.fx import Node

from models.graph.onnx.operators import Attributes, Build, aten

Padding = list[int]
"""Rows above, columns on the left, rows below, columns on the right."""


def padding_of(attributes: Attributes, image: Sequence[int], kernel: Sequence[int]) -> Padding:
    """Return the padding of a sliding window. image, kernel: (height, width). Raises: ValueError."""
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode == b"VALID":
        return [0, 0, 0, 0]
    if mode == b"NOTSET":
        return list(attributes.get("pads", [0, 0, 0, 0]))
    if mode not in (b"SAME_UPPER", b"SAME_LOWER"):
        raise ValueError(f"its attribute auto_pad is {mode.decode()!r}")
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    before, after = [], []
    for side, size, stride, dilation in zip(image, kernel, strides, dilations, strict=True):
        needed = (math.ceil(side / stride) - 1) * stride + (size - 1) * dilation + 1
        total = max(needed - side, 0)
        first = total // 2 if mode == b"SAME_UPPER" else total - total // 2
        before.append(first)
        after.append(total - first)
    return [*before, *after]


def padded(
    build: Build, x: Node, padding: Padding, filling: float, *, most: Sequence[int] | None = None
) -> tuple[Node, list[int]]:
    """Pad `x` if opposite sides differ. Return it with the padding (rows, columns) that is left for the operator.

    most: the largest padding that the operator takes; None: it takes any.
    """
    fits = most is None or all(size <= limit for size, limit in zip(padding[:2], most, strict=True))
    if padding[:2] == padding[2:] and fits:
        return x, padding[:2]
    top, left, bottom, right = padding
    return build.call(aten.constant_pad_nd.default, x, [left, right, top, bottom], filling), [0, 0]
