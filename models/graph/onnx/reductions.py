"""Translates operators that combine the values of an axis: softmax, norms, sums and pooling."""

from typing import Any

from torch.fx import Node

from models.graph.onnx.layout import axes_of
from models.graph.onnx.operators import OPERATORS, OUTPUTS, Attributes, Build, Names, Operator, aten, operator
from models.graph.onnx.padding import padded, padding_of


@operator("Softmax")
def softmax(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.softmax.int, build.value(names[0]), attributes.get("axis", -1))


@operator("LogSoftmax")
def log_softmax(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.log_softmax.int, build.value(names[0]), attributes.get("axis", -1))


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
    if attributes.get("training_mode"):
        raise ValueError("it is in training mode")
    x, scale, bias, mean, var = (build.value(name) for name in names)
    return build.call(
        aten.batch_norm.default, x, scale, bias, mean, var, False, 0.0, attributes.get("epsilon", 1e-5), False
    )


def _reduction(target: Any) -> Operator:
    def reduce(build: Build, names: Names, attributes: Attributes) -> Node:
        axes, keep = axes_of(build, names, attributes), bool(attributes.get("keepdims", 1))
        if not axes and attributes.get("noop_with_empty_axes"):
            return build.value(names[0])
        axes = axes or list(range(len(build.sizes(names[0]))))
        return build.call(target, build.value(names[0]), axes, keep)

    return reduce


OPERATORS["ReduceMean"] = _reduction(aten.mean.dim)
OPERATORS["ReduceSum"] = _reduction(aten.sum.dim_IntList)
OPERATORS["ReduceMax"] = _reduction(aten.amax.default)
OPERATORS["ReduceMin"] = _reduction(aten.amin.default)


def _place_of(target: Any) -> Operator:
    def find(build: Build, names: Names, attributes: Attributes) -> Node:
        if attributes.get("select_last_index"):
            raise ValueError("it takes the last of several equal values")
        return build.call(target, build.value(names[0]), attributes.get("axis", 0), bool(attributes.get("keepdims", 1)))

    return find


OPERATORS["ArgMax"] = _place_of(aten.argmax.default)
OPERATORS["ArgMin"] = _place_of(aten.argmin.default)


@operator("ReduceL2")
def reduce_l2(build: Build, names: Names, attributes: Attributes) -> Node:
    axes, keep = axes_of(build, names, attributes), bool(attributes.get("keepdims", 1))
    return build.call(aten.linalg_vector_norm.default, build.value(names[0]), 2, axes, keep)


@operator("GlobalAveragePool")
def global_pool(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.mean.dim, build.value(names[0]), list(range(2, len(build.sizes(names[0])))), True)


@operator("MaxPool")
def max_pool(build: Build, names: Names, attributes: Attributes) -> Node:
    kernel, strides = _window(attributes)
    if attributes[OUTPUTS] > 1:
        raise ValueError("it gives the indices of the largest values")
    padding = padding_of(attributes, build.sizes(names[0])[2:], kernel)
    x, padding = padded(build, build.value(names[0]), padding, float("-inf"), most=[side // 2 for side in kernel])
    dilations, rounds_up = list(attributes.get("dilations", [1, 1])), bool(attributes.get("ceil_mode", 0))
    return build.call(aten.max_pool2d.default, x, kernel, strides, padding, dilations, rounds_up)


@operator("AveragePool")
def average_pool(build: Build, names: Names, attributes: Attributes) -> Node:
    kernel, strides = _window(attributes)
    padding = padding_of(attributes, build.sizes(names[0])[2:], kernel)
    counts_padding = bool(attributes.get("count_include_pad", 0))
    if list(attributes.get("dilations", [1, 1])) != [1, 1]:
        raise ValueError("it is dilated")
    if padding[:2] != padding[2:] and not counts_padding:
        raise ValueError("opposite sides have different padding")
    x, padding = padded(build, build.value(names[0]), padding, 0.0)
    rounds_up = bool(attributes.get("ceil_mode", 0))
    return build.call(aten.avg_pool2d.default, x, kernel, strides, padding, rounds_up, counts_padding)


def _window(attributes: Attributes) -> tuple[list[int], list[int]]:
    """Return the kernel and the strides (rows, columns) of a pooling. Raises: ValueError unless it is 2-D."""
    kernel = list(attributes["kernel_shape"])
    if len(kernel) != 2:
        raise ValueError("it is not a 2-D pooling")
    return kernel, list(attributes.get("strides", [1, 1]))
