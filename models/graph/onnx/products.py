"""Translates products with weights: linear layers, convolutions and products of activations."""

import torch
from torch.fx import Node

from models.graph.onnx.operators import Attributes, Build, Names, aten, operator
from models.graph.onnx.padding import padded, padding_of


@operator("MatMul")
def matmul(build: Build, names: Names, attributes: Attributes) -> Node:
    if build.is_constant(names[1]) and not build.is_constant(names[0]) and build.constant(names[1]).ndim == 2:
        tensors = {names[1]: torch.from_numpy(build.constant(names[1]).T.copy())}
        tensors |= {name: torch.from_numpy(build.constant(name).copy()) for name in names[2:]}
        return build.call(aten.linear.default, build.value(names[0]), *build.layer(tensors))
    return build.call(aten.matmul.default, build.value(names[0]), build.value(names[1]))


@operator("Gemm")
def gemm(build: Build, names: Names, attributes: Attributes) -> Node:
    if attributes.get("transA") or not build.is_constant(names[1]):
        raise ValueError("it multiplies two activations, or a transposed activation")
    weight = build.constant(names[1]) * attributes.get("alpha", 1.0)
    tensors = {names[1]: torch.from_numpy((weight if attributes.get("transB") else weight.T).copy())}
    if len(names) > 2:
        bias = build.constant(names[2]) * attributes.get("beta", 1.0)
        tensors[names[2]] = torch.from_numpy(bias.reshape(-1).copy())
    return build.call(aten.linear.default, build.value(names[0]), *build.layer(tensors))


@operator("Conv")
def conv(build: Build, names: Names, attributes: Attributes) -> Node:
    weight = build.sizes(names[1])
    if len(weight) != 4:
        raise ValueError("it is not a 2-D convolution")
    strides, dilations = list(attributes.get("strides", [1, 1])), list(attributes.get("dilations", [1, 1]))
    padding = padding_of(attributes, build.sizes(names[0])[2:], weight[2:])
    x, padding = padded(build, build.value(names[0]), padding, 0.0)
    bias = build.value(names[2]) if len(names) > 2 and names[2] else None
    group = attributes.get("group", 1)
    return build.call(aten.conv2d.default, x, build.value(names[1]), bias, strides, padding, dilations, group)


@operator("Einsum")
def einsum(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.einsum.default, attributes["equation"].decode(), [build.value(name) for name in names])
