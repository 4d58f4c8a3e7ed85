"""Translates the ONNX operators that occur in exported vision transformers to PyTorch operators."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten
Names = list[str]
Attributes = dict[str, Any]


class Build(Protocol):
    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node: ...
    def value(self, name: str) -> Node: ...
    def weight(self, name: str, tensor: Tensor) -> Node: ...
    def constant(self, name: str) -> Any: ...
    def is_constant(self, name: str) -> bool: ...
    def sizes(self, name: str) -> tuple[int, ...]: ...
    def images(self) -> Node: ...


Operator = Callable[[Any, Names, Attributes], Node | list[Node]]
OPERATORS: dict[str, Operator] = {"Constant": lambda build, names, attributes: []}


def operator(*names: str) -> Callable[[Operator], Operator]:
    def add(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def _plain(target: Any) -> Operator:
    return lambda build, names, attributes: build.call(target, *(build.value(name) for name in names))


for _name, _target in {
    "Add": aten.add.Tensor,
    "Sub": aten.sub.Tensor,
    "Mul": aten.mul.Tensor,
    "Div": aten.div.Tensor,
    "Erf": aten.erf.default,
    "Sqrt": aten.sqrt.default,
    "Tanh": aten.tanh.default,
    "Sigmoid": aten.sigmoid.default,
    "Relu": aten.relu.default,
    "Exp": aten.exp.default,
    "Log": aten.log.default,
    "Neg": aten.neg.default,
    "Abs": aten.abs.default,
    "Reciprocal": aten.reciprocal.default,
    "HardSwish": aten.hardswish.default,
    "Identity": aten.alias.default,
    "Pow": aten.pow.Tensor_Tensor,
    "Where": aten.where.self,
    "Equal": aten.eq.Tensor,
    "Max": aten.maximum.default,
    "Min": aten.minimum.default,
    "Cos": aten.cos.default,
    "Sin": aten.sin.default,
}.items():
    OPERATORS[_name] = _plain(_target)


@operator("Cast")
def cast(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.value(names[0])  # everything is computed in fp32, so a cast does nothing


@operator("Gelu")
def gelu(build: Build, names: Names, attributes: Attributes) -> Node:
    how = attributes.get("approximate", b"none").decode()
    return build.call(aten.gelu.default, build.value(names[0]), approximate=how)


@operator("Clip")
def clip(build: Build, names: Names, attributes: Attributes) -> Node:
    low, high = ([float(build.constant(name)) if name else None for name in [*names[1:], "", ""]])[:2]
    return build.call(aten.clamp.default, build.value(names[0]), low, high)


@operator("MatMul")
def matmul(build: Build, names: Names, attributes: Attributes) -> Node:
    if build.is_constant(names[1]) and not build.is_constant(names[0]) and build.constant(names[1]).ndim == 2:
        weight = build.weight(names[1], torch.from_numpy(build.constant(names[1]).T.copy()))
        bias = [build.value(name) for name in names[2:]]
        return build.call(aten.linear.default, build.value(names[0]), weight, *bias)
    return build.call(aten.matmul.default, build.value(names[0]), build.value(names[1]))


@operator("Gemm")
def gemm(build: Build, names: Names, attributes: Attributes) -> Node:
    if attributes.get("transA") or not build.is_constant(names[1]):
        raise ValueError("it multiplies two activations, or a transposed activation")
    weight = build.constant(names[1]) * attributes.get("alpha", 1.0)
    weight = build.weight(names[1], torch.from_numpy((weight if attributes.get("transB") else weight.T).copy()))
    if len(names) < 3:
        return build.call(aten.linear.default, build.value(names[0]), weight)
    bias = build.constant(names[2]) * attributes.get("beta", 1.0)
    rows = build.weight(names[2], torch.from_numpy(bias.reshape(-1).copy()))
    return build.call(aten.linear.default, build.value(names[0]), weight, rows)


@operator("Conv")
def conv(build: Build, names: Names, attributes: Attributes) -> Node:
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    half = len(pads) // 2
    x = build.value(names[0])
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or half != 2:
        raise ValueError("it has automatic padding (auto_pad), or it is not a 2-D convolution")
    if pads[:half] != pads[half:]:
        x = build.call(aten.constant_pad_nd.default, x, [pads[1], pads[3], pads[0], pads[2]])
        pads = [0, 0, 0, 0]
    bias = build.value(names[2]) if len(names) > 2 else None
    strides, dilations = list(attributes.get("strides", [1, 1])), list(attributes.get("dilations", [1, 1]))
    return build.call(
        aten.conv2d.default, x, build.value(names[1]), bias, strides, pads[:half], dilations, attributes.get("group", 1)
    )


@operator("Reshape")
def reshape(build: Build, names: Names, attributes: Attributes) -> Node:
    before = build.sizes(names[0])
    wanted = [int(size) for size in build.constant(names[1])]
    wanted = [before[i] if size == 0 and not attributes.get("allowzero") else size for i, size in enumerate(wanted)]
    return build.call(aten.reshape.default, build.value(names[0]), wanted)


@operator("Flatten")
def flatten(build: Build, names: Names, attributes: Attributes) -> Node:
    sizes, axis = build.sizes(names[0]), attributes.get("axis", 1)
    ahead, behind = math.prod(sizes[:axis]), math.prod(sizes[axis:])
    return build.call(aten.reshape.default, build.value(names[0]), [ahead, behind])


@operator("Transpose")
def transpose(build: Build, names: Names, attributes: Attributes) -> Node:
    order = attributes.get("perm") or list(reversed(range(len(build.sizes(names[0])))))
    return build.call(aten.permute.default, build.value(names[0]), list(order))


@operator("Unsqueeze")
def unsqueeze(build: Build, names: Names, attributes: Attributes) -> Node:
    x = build.value(names[0])
    for axis in sorted(_axes(build, names, attributes)):
        x = build.call(aten.unsqueeze.default, x, axis)
    return x


@operator("Squeeze")
def squeeze(build: Build, names: Names, attributes: Attributes) -> Node:
    rank = len(build.sizes(names[0]))
    axes = [axis % rank for axis in _axes(build, names, attributes)]
    x = build.value(names[0])
    for axis in sorted(axes, reverse=True):
        x = build.call(aten.squeeze.dim, x, axis)
    return x


def _axes(build: Build, names: Names, attributes: Attributes) -> list[int]:
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
    axis = attributes.get("axis", 0)
    whole = build.sizes(names[0])[axis]
    if len(names) > 1 and names[1]:
        sizes = [int(size) for size in build.constant(names[1])]
    elif "split" in attributes:
        sizes = list(attributes["split"])
    else:
        count = attributes["num_outputs"]
        sizes = [whole // count] * count
    parts, first = [], 0
    if (
        len(set(sizes)) == 1
    ):  # the number of equal parts is a factor of the dim: a reshape shows it, slices would hide it
        axis %= len(build.sizes(names[0]))
        shape = list(build.sizes(names[0]))
        apart = build.call(
            aten.reshape.default, build.value(names[0]), [*shape[:axis], len(sizes), sizes[0], *shape[axis + 1 :]]
        )
        return [build.call(aten.select.int, apart, axis, i) for i in range(len(sizes))]
    for size in sizes:
        parts.append(build.call(aten.slice.Tensor, build.value(names[0]), axis, first, first + size))
        first += size
    return parts


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


@operator("Softmax")
def softmax(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.softmax.int, build.value(names[0]), attributes.get("axis", -1))


@operator("LayerNormalization")
def layer_norm(build: Build, names: Names, attributes: Attributes) -> Node:
    sizes = build.sizes(names[0])
    if attributes.get("axis", -1) not in (-1, len(sizes) - 1):
        raise ValueError("it normalises over several dims")
    tables = [build.value(name) for name in names[1:]]
    return build.call(
        aten.layer_norm.default, build.value(names[0]), [sizes[-1]], *tables, eps=attributes.get("epsilon", 1e-5)
    )


@operator("BatchNormalization")
def batch_norm(build: Build, names: Names, attributes: Attributes) -> Node:
    x, scale, bias, mean, var = (build.value(name) for name in names)
    return build.call(
        aten.batch_norm.default, x, scale, bias, mean, var, False, 0.0, attributes.get("epsilon", 1e-5), False
    )


def _reduction(target: Any) -> Operator:
    def reduce(build: Build, names: Names, attributes: Attributes) -> Node:
        axes, keep = _axes(build, names, attributes), bool(attributes.get("keepdims", 1))
        return build.call(target, build.value(names[0]), axes, keep)

    return reduce


OPERATORS["ReduceMean"] = _reduction(aten.mean.dim)
OPERATORS["ReduceSum"] = _reduction(aten.sum.dim_IntList)
OPERATORS["ReduceMax"] = _reduction(aten.amax.default)


@operator("ReduceL2")
def reduce_l2(build: Build, names: Names, attributes: Attributes) -> Node:
    axes, keep = _axes(build, names, attributes), bool(attributes.get("keepdims", 1))
    return build.call(aten.linalg_vector_norm.default, build.value(names[0]), 2, axes, keep)


@operator("GlobalAveragePool")
def global_pool(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.mean.dim, build.value(names[0]), [2, 3], True)


@operator("MaxPool", "AveragePool")
def pool(build: Build, names: Names, attributes: Attributes) -> Node:
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    if pads[:2] != pads[2:] or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError("it has automatic padding (auto_pad), or opposite sides have different padding")
    sizes, strides = list(attributes["kernel_shape"]), list(attributes.get("strides", [1, 1]))
    rounds = bool(attributes.get("ceil_mode", 0))
    if "count_include_pad" in attributes:
        whole = bool(attributes["count_include_pad"])
        return build.call(aten.avg_pool2d.default, build.value(names[0]), sizes, strides, pads[:2], rounds, whole)
    return build.call(aten.max_pool2d.default, build.value(names[0]), sizes, strides, pads[:2], [1, 1], rounds)


OPERATORS["AveragePool"] = lambda build, names, given: pool(build, names, {"count_include_pad": 0, **given})


@operator("HardSigmoid")
def hard_sigmoid(build: Build, names: Names, attributes: Attributes) -> Node:
    scaled = build.call(aten.mul.Tensor, build.value(names[0]), attributes.get("alpha", 0.2))
    return build.call(aten.clamp.default, build.call(aten.add.Tensor, scaled, attributes.get("beta", 0.5)), 0.0, 1.0)


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


@operator("Einsum")
def einsum(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.einsum.default, attributes["equation"].decode(), [build.value(name) for name in names])
