"""Translates operators that only move values: reshapes, slices, concatenation, padding."""

import math

import torch
from torch.fx import Node

from models.graph.onnx.operators import OUTPUTS, Attributes, Build, Names, aten, operator


@operator("Reshape")
def reshape(build: Build, names: Names, attributes: Attributes) -> Node:
    before = build.sizes(names[0])
    wanted = [int(size) for size in build.constant(names[1])]
    wanted = [before[i] if size == 0 and not attributes.get("allowzero") else size for i, size in enumerate(wanted)]
    return build.call(aten.reshape.default, build.value(names[0]), wanted)


@operator("Flatten")
def flatten(build: Build, names: Names, attributes: Attributes) -> Node:
    sizes, axis = build.sizes(names[0]), attributes.get("axis", 1)
    axis += len(sizes) if axis < 0 else 0
    ahead, behind = math.prod(sizes[:axis]), math.prod(sizes[axis:])
    return build.call(aten.reshape.default, build.value(names[0]), [ahead, behind])


@operator("Transpose")
def transpose(build: Build, names: Names, attributes: Attributes) -> Node:
    order = attributes.get("perm") or list(reversed(range(len(build.sizes(names[0])))))
    return build.call(aten.permute.default, build.value(names[0]), list(order))


@operator("Unsqueeze")
def unsqueeze(build: Build, names: Names, attributes: Attributes) -> Node:
    x, axes = build.value(names[0]), axes_of(build, names, attributes)
    rank = len(build.sizes(names[0])) + len(axes)  # negative axes count from the end of the result
    for axis in sorted(axis % rank for axis in axes):
        x = build.call(aten.unsqueeze.default, x, axis)
    return x


@operator("Squeeze")
def squeeze(build: Build, names: Names, attributes: Attributes) -> Node:
    sizes, x = build.sizes(names[0]), build.value(names[0])
    axes = axes_of(build, names, attributes) or [axis for axis, size in enumerate(sizes) if size == 1]
    for axis in sorted((axis % len(sizes) for axis in axes), reverse=True):
        x = build.call(aten.squeeze.dim, x, axis)
    return x


def axes_of(build: Build, names: Names, attributes: Attributes) -> list[int]:
    """Return the axes that a node names by an attribute or by an input; an empty list if it names none."""
    if "axes" in attributes:
        return list(attributes["axes"])
    return [int(axis) for axis in build.constant(names[1])] if len(names) > 1 and names[1] else []


@operator("Concat")
def concat(build: Build, names: Names, attributes: Attributes) -> Node:
    """Concatenate tensors. A constant, such as a class token, is first repeated for each image."""
    alone = [build.is_constant(name) for name in names]
    parts = [build.value(name) for name in names]
    if any(alone) and not all(alone) and attributes["axis"] != 0:
        rest = [-1] * (len(build.sizes(names[0])) - 1)
        parts = [
            build.call(aten.expand.default, part, [build.images(), *rest]) if one else part
            for part, one in zip(parts, alone, strict=True)
        ]
    return build.call(aten.cat.default, parts, attributes["axis"])


@operator("Split")
def split(build: Build, names: Names, attributes: Attributes) -> list[Node]:
    before = build.sizes(names[0])
    axis = attributes.get("axis", 0) % len(before)
    sizes = _part_sizes(build, names, attributes, before[axis])
    if len(set(sizes)) == 1:
        # The number of equal parts is a factor of the dim. A reshape shows it, slices would hide it.
        shape = [*before[:axis], len(sizes), sizes[0], *before[axis + 1 :]]
        apart = build.call(aten.reshape.default, build.value(names[0]), shape)
        return [build.call(aten.select.int, apart, axis, i) for i in range(len(sizes))]
    parts, first = [], 0
    for size in sizes:
        parts.append(build.call(aten.slice.Tensor, build.value(names[0]), axis, first, first + size))
        first += size
    return parts


def _part_sizes(build: Build, names: Names, attributes: Attributes, size: int) -> list[int]:
    """Return the sizes of the parts. Without given sizes, all parts are equal, and the last one may be smaller."""
    if len(names) > 1 and names[1]:
        return [int(part) for part in build.constant(names[1])]
    if "split" in attributes:
        return list(attributes["split"])
    each = math.ceil(size / attributes[OUTPUTS])
    return [min(each, size - first) for first in range(0, size, each)]


@operator("Slice")
def slice_(build: Build, names: Names, attributes: Attributes) -> Node:
    x, rank = build.value(names[0]), len(build.sizes(names[0]))
    starts, ends = (list(map(int, build.constant(name))) for name in names[1:3])
    axes = list(map(int, build.constant(names[3]))) if len(names) > 3 and names[3] else list(range(len(starts)))
    steps = list(map(int, build.constant(names[4]))) if len(names) > 4 else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise ValueError(f"its step is {step}, but it must be at least 1")
        x = build.call(aten.slice.Tensor, x, axis % rank, start, min(end, 1 << 40), step)
    return x


@operator("Gather")
def gather(build: Build, names: Names, attributes: Attributes) -> Node:
    axis, index = attributes.get("axis", 0), build.constant(names[1])
    if index.ndim == 0:
        return build.call(aten.select.int, build.value(names[0]), axis, int(index))
    chosen = build.weight(names[1], torch.from_numpy(index.copy()).long())
    axis %= len(build.sizes(names[0]))
    return build.call(aten.index.Tensor, build.value(names[0]), [None] * axis + [chosen])


@operator("Expand")
def expand(build: Build, names: Names, attributes: Attributes) -> Node:
    before = build.sizes(names[0])
    wanted = [int(size) for size in build.constant(names[1])]
    before = (1,) * (len(wanted) - len(before)) + before
    return build.call(
        aten.expand.default, build.value(names[0]), [max(a, b) for a, b in zip(before, wanted, strict=True)]
    )


@operator("Tile")
def tile(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.repeat.default, build.value(names[0]), [int(times) for times in build.constant(names[1])])


@operator("Pad")
def pad(build: Build, names: Names, attributes: Attributes) -> Node:
    if attributes.get("mode", b"constant") != b"constant" or (len(names) > 3 and names[3]):
        raise ValueError("its padding is not constant, or it pads only chosen axes")
    pads = [int(size) for size in build.constant(names[1])]
    if not any(pads):
        return build.value(names[0])
    rank = len(pads) // 2
    both = [size for axis in reversed(range(rank)) for size in (pads[axis], pads[rank + axis])]
    filling = float(build.constant(names[2])) if len(names) > 2 and names[2] else 0.0
    return build.call(aten.constant_pad_nd.default, build.value(names[0]), both, filling)
