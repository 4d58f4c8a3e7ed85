"""Walks a graph and records what each operator does to the atoms of its inputs.

Each kind of operator has one rule (layout.py, norms.py, products.py). An operator without a rule fixes all its
inputs. So an unknown operator can prevent a cut that would be possible, but never causes a wrong cut.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.fx import Node

from models.graph.tracing.atoms import Atom, Batch, Dim, Dims, Mismatch, fix, fixed, leaves, size_of, unify

aten = torch.ops.aten
Sizes = tuple[int, ...]
Rule = Callable[["Tracer", Node], Any]
R = TypeVar("R")
METHODS: dict[Any, Any] = {"expand": aten.expand, "repeat": aten.repeat}
"""Operators that become method calls when the batch size is made free.

An exporter then sees that the number of images is not constant.
"""
RULES: dict[Any, Rule] = {}
"""Rules by operator. One rule serves all overloads of its operator."""


def registering(rules: dict[Any, R]) -> Callable[..., Callable[[R], R]]:
    """Return a decorator that adds a rule for some operators to the table `rules`."""

    def of(*operators: Any) -> Callable[[R], R]:
        def add(function: R) -> R:
            rules.update(dict.fromkeys(operators, function))
            return function

        return add

    return of


rule = registering(RULES)


def packet_of(node: Node) -> Any:
    """Return the operator of a node without its overload. The node may call it as a function or as a method."""
    return METHODS.get(node.target, getattr(node.target, "overloadpacket", node.target))


def is_pointwise(node: Node) -> bool:
    return RULES.get(packet_of(node)) is pointwise or torch.Tag.pointwise in getattr(node.target, "tags", ())


class Tracer:
    """Walks a graph once.

    dims: for each tensor node, the atoms of its dims; for a node with several outputs, a list with the dims of each
    output.
    """

    def __init__(self, sizes: dict[Node, Any], batch: int) -> None:
        """sizes: the shape of each node, or a list of shapes.

        batch: the number of images for which the graph was captured.
        """
        self.sizes, self.batch = sizes, Batch(batch)
        self.dims: dict[Node, Any] = {}
        self.contractions: dict[Node, tuple[Dim, Dim]] = {}
        """Products with weights: node -> (atoms that it sums over, atoms that its weights make)."""
        self.mixtures: dict[Node, tuple[Dim, Dim]] = {}
        """Products of activations: node -> (atoms that count the products, atoms that they sum over)."""
        self.weights: set[Node] = set()
        """Nodes that do not depend on the input of the graph."""

    def visit(self, node: Node) -> None:
        if node.op == "placeholder":
            _, *rest = self.sizes[node]
            self.dims[node] = [[self.batch], *(fixed(size) for size in rest)]
            return
        if node.op == "get_attr":
            self.weights.add(node)
            if isinstance(self.sizes.get(node), tuple):
                self.dims[node] = [[Atom(size)] for size in self.sizes[node]]
            return
        if node.op not in ("call_function", "call_method") or node.target == "size":
            return
        if all(source in self.weights for source in node.all_input_nodes):
            self.weights.add(node)
        try:
            found = self._rule(node)(self, node)
        except (Mismatch, LookupError, TypeError, ValueError):  # the rule does not cover this use of the operator
            found = None
        self.dims[node] = found if found is not None else self.unknown(node)

    def _rule(self, node: Node) -> Rule:
        if found := RULES.get(packet_of(node)):
            return found
        return pointwise if is_pointwise(node) else lambda tracer, node: tracer.unknown(node)

    def unknown(self, node: Node) -> Any:
        """Fix all inputs of an operator.

        The first dim of its output counts as the batch if it has the size of the batch.
        """
        for source in node.all_input_nodes:
            for dims in self.each(source):
                for dim in dims:
                    fix(dim)
        sizes = self.sizes.get(node)
        if isinstance(sizes, list):
            return [self._opaque(one) for one in sizes]
        return self._opaque(sizes) if isinstance(sizes, tuple) else None

    def _opaque(self, sizes: Any) -> Dims:
        if not isinstance(sizes, tuple):
            return []
        new = [fixed(size) for size in sizes]
        if sizes and sizes[0] == self.batch.size:
            new[0] = [self.batch]
        return new

    def each(self, node: Node) -> list[Dims]:
        """Return the dims of each tensor of a node. A node with one tensor gives a list with one entry."""
        dims = self.dims.get(node)
        if dims is None:
            return []
        several = isinstance(self.sizes.get(node), list)
        return list(dims) if several else [dims]

    def of(self, node: Any) -> Dims:
        return [leaves(dim) for dim in self.dims[node]]

    def shape(self, node: Node) -> Sizes:
        found = self.sizes[node]
        assert isinstance(found, tuple)
        return found

    def broadcast(self, one: Dims, other: Dims) -> Dims:
        """Return the dims of two operands after broadcasting, which aligns their last dims."""
        rank = max(len(one), len(other))
        a: Dims = [[] for _ in range(rank - len(one))] + list(one)
        b: Dims = [[] for _ in range(rank - len(other))] + list(other)
        found: Dims = []
        for left, right in zip(a, b, strict=True):
            size_left, size_right = size_of(left), size_of(right)
            if size_left == size_right:
                unify(left, right)
                found.append(left or right)
            else:
                found.append(left if size_right == 1 else right)
        return found


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def numbers(node: Node) -> list[Any]:
    """Return the sizes or repetitions that a node passes to its operator or method."""
    return list(node.args[1]) if node.op == "call_function" else list(node.args[1:])  # type: ignore[arg-type]


@rule(
    aten.hardswish,
    aten.hardswish_,
    aten.hardsigmoid,
    aten.hardsigmoid_,
    aten.hardtanh,
    aten.hardtanh_,
    aten.relu6,
    aten.mish,
    aten.silu_,
    aten.gelu_,
    aten.leaky_relu_,
    aten.elu_,
    aten.masked_fill,
    aten.masked_fill_,
    aten.pow,
    aten.copy_,
    aten.copy,
)
def pointwise(tracer: Tracer, node: Node) -> Dims:
    found: Dims = []
    for source in node.all_input_nodes:
        found = tracer.broadcast(found, tracer.of(source)) if found else tracer.of(source)
    return found
