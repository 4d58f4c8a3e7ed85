"""Translates the ONNX operators that occur in exported vision transformers to PyTorch operators.

This file has the table of all operators, and those that work on each value alone. Importing layout.py, products.py and
reductions.py adds the others.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from onnx import TensorProto
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten
Names = list[str]
Attributes = dict[str, Any]
OUTPUTS, WHOLE_NUMBERS = "vitfit.outputs", "vitfit.whole_numbers"
"""Further attributes that the reader gives to each operator: the number of outputs of the node, and whether its first
output holds whole numbers."""
WHOLE = frozenset(
    {
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
    }
)
"""Types of whole numbers."""
FRACTIONS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})
"""Types of fractions. All fractions are computed in fp32."""


class Build(Protocol):
    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node: ...
    def value(self, name: str) -> Node: ...
    def weight(self, name: str, tensor: Tensor) -> Node: ...
    def layer(self, tensors: dict[str, Tensor]) -> list[Node]: ...
    def constant(self, name: str) -> Any: ...
    def is_constant(self, name: str) -> bool: ...
    def is_whole(self, name: str) -> bool: ...
    def sizes(self, name: str) -> tuple[int, ...]: ...
    def images(self) -> Node: ...


Operator = Callable[[Any, Names, Attributes], Node | list[Node]]
OPERATORS: dict[str, Operator] = {"Constant": lambda build, names, attributes: []}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Return a decorator that adds a translation to `OPERATORS`.

    A translation gets the names of the node's inputs, and its attributes. It raises ValueError with a reason when it
    cannot translate this use of the operator.
    """

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
    "Floor": aten.floor.default,
    "Ceil": aten.ceil.default,
    "Round": aten.round.default,
    "Sign": aten.sign.default,
    "Not": aten.logical_not.default,
    "And": aten.logical_and.default,
    "Or": aten.logical_or.default,
    "Greater": aten.gt.Tensor,
    "Less": aten.lt.Tensor,
    "GreaterOrEqual": aten.ge.Tensor,
    "LessOrEqual": aten.le.Tensor,
    "Dropout": aten.alias.default,
    "Softplus": aten.softplus.default,
    "IsNaN": aten.isnan.default,
    "Tan": aten.tan.default,
    "Atan": aten.atan.default,
    "Cos": aten.cos.default,
    "Sin": aten.sin.default,
}.items():
    OPERATORS[_name] = _plain(_target)


@operator("Cast")
def cast(build: Build, names: Names, attributes: Attributes) -> Node:
    """Convert fractions to whole numbers by dropping the fraction. The result is stored as fp32."""
    x, kind = build.value(names[0]), attributes["to"]
    if kind in FRACTIONS or build.is_whole(names[0]):
        return x
    if kind in WHOLE:
        return build.call(aten.mul.Tensor, build.call(aten.sign.default, x), _floor_of_size(build, x))
    if kind == TensorProto.BOOL:
        return build.call(aten.ne.Scalar, x, 0)
    raise ValueError(f"it converts to the type {TensorProto.DataType.Name(kind)}")


def _floor_of_size(build: Build, x: Node) -> Node:
    """Return the size of each value without its fraction. torch's exporter has no operator that drops the fraction."""
    return build.call(aten.floor.default, build.call(aten.abs.default, x))


@operator("Div")
def div(build: Build, names: Names, attributes: Attributes) -> Node:
    one, other = (build.value(name) for name in names)
    if attributes[WHOLE_NUMBERS]:
        return build.call(aten.div.Tensor_mode, one, other, rounding_mode="trunc")
    return build.call(aten.div.Tensor, one, other)


def _of_many(target: Any) -> Operator:
    def combine(build: Build, names: Names, attributes: Attributes) -> Node:
        """Combine any number of inputs, two at a time."""
        x = build.value(names[0])
        for name in names[1:]:
            x = build.call(target, x, build.value(name))
        return x

    return combine


for _name, _target in {"Sum": aten.add.Tensor, "Max": aten.maximum.default, "Min": aten.minimum.default}.items():
    OPERATORS[_name] = _of_many(_target)


@operator("Mean")
def mean(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.div.Tensor, OPERATORS["Sum"](build, names, attributes), len(names))


@operator("Gelu")
def gelu(build: Build, names: Names, attributes: Attributes) -> Node:
    how = attributes.get("approximate", b"none").decode()
    return build.call(aten.gelu.default, build.value(names[0]), approximate=how)


@operator("Elu")
def elu(build: Build, names: Names, attributes: Attributes) -> Node:
    return build.call(aten.elu.default, build.value(names[0]), attributes.get("alpha", 1.0))


@operator("Clip")
def clip(build: Build, names: Names, attributes: Attributes) -> Node:
    low, high = ([float(build.constant(name)) if name else None for name in [*names[1:], "", ""]])[:2]
    return build.call(aten.clamp.default, build.value(names[0]), low, high)


@operator("HardSigmoid")
def hard_sigmoid(build: Build, names: Names, attributes: Attributes) -> Node:
    scaled = build.call(aten.mul.Tensor, build.value(names[0]), attributes.get("alpha", 0.2))
    return build.call(aten.clamp.default, build.call(aten.add.Tensor, scaled, attributes.get("beta", 0.5)), 0.0, 1.0)
