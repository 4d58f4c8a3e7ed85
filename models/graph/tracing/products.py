"""Tracing rules for products: linear layers, convolutions and attention."""

from collections.abc import Sequence

import torch
from torch.fx import Node

from models.graph.tracing.atoms import Dim, Dims, Mismatch, fix, fixed, leaves, size_of, split_off, unify
from models.graph.tracing.tracer import Tracer, argument, rule

aten = torch.ops.aten


@rule(aten.linear)
def linear(tracer: Tracer, node: Node) -> Dims:
    x, weight = tracer.of(node.args[0]), tracer.of(node.args[1])
    unify(x[-1], weight[1])
    bias = argument(node, 2, "bias")
    if bias is not None:
        unify(weight[0], tracer.of(bias)[0])
    tracer.contractions[node] = (weight[1], weight[0])
    return [*x[:-1], leaves(weight[0])]


@rule(aten.matmul, aten.bmm, aten.mm)
def matmul(tracer: Tracer, node: Node) -> Dims:
    a, b = tracer.of(node.args[0]), tracer.of(node.args[1])
    if len(a) == 1 or len(b) == 1:
        raise Mismatch
    unify(a[-1], b[-2])
    ahead = tracer.broadcast(a[:-2], b[:-2])
    left, right = (node.args[0] in tracer.weights, node.args[1] in tracer.weights)
    if right and not left:
        tracer.contractions[node] = (b[-2], b[-1])
    elif left and not right:
        tracer.contractions[node] = (a[-1], a[-2])
    elif not left:
        tracer.mixtures[node] = ([atom for dim in ahead for atom in leaves(dim)], a[-1])
    return [*ahead, leaves(a[-2]), leaves(b[-1])]


@rule(aten.einsum)
def einsum(tracer: Tracer, node: Node) -> Dims | None:
    equation, sources = node.args[0], node.args[1]
    assert isinstance(equation, str) and isinstance(sources, list | tuple)
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow or "." in equation:
        return None
    known: dict[str, Dim] = {}
    for letters, source in zip(inputs.split(","), sources, strict=True):
        for letter, dim in zip(letters, tracer.of(source), strict=True):
            if letter in known:
                unify(known[letter], dim)
            known[letter] = leaves(dim)
    if len(sources) != 2:
        return None
    one, other = (set(letters) for letters in inputs.split(","))
    over = [atom for letter in one & other - set(output) for atom in leaves(known[letter])]
    weights = [source in tracer.weights for source in sources]
    if any(weights) and not all(weights):
        mine = other if weights[1] else one
        made = [atom for letter in mine & set(output) for atom in leaves(known[letter])]
        tracer.contractions[node] = (over, made)
    elif not any(weights):
        ahead = [atom for letter in one & other & set(output) for atom in leaves(known[letter])]
        tracer.mixtures[node] = (ahead, over)
    return [leaves(known[letter]) for letter in output]


@rule(aten.scaled_dot_product_attention)
def attention(tracer: Tracer, node: Node) -> Dims:
    q, k, v = (tracer.of(source) for source in node.args[:3])
    ahead = tracer.broadcast(tracer.broadcast(q[:-2], k[:-2]), v[:-2])
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    fix(k[-2])
    mask = argument(node, 3, "attn_mask")
    if mask is not None:
        tracer.broadcast([*ahead, q[-2], k[-2]], tracer.of(mask))
    tracer.mixtures[node] = ([atom for dim in ahead for atom in leaves(dim)], [*q[-1], *v[-1]])
    return [*(leaves(dim) for dim in ahead), leaves(q[-2]), leaves(v[-1])]


@rule(aten.conv2d, aten.conv1d, aten.convolution)
def convolution(tracer: Tracer, node: Node) -> Dims | None:
    x, weight, wanted = tracer.of(node.args[0]), tracer.of(node.args[1]), tracer.shape(node)
    groups = convolution_groups(node)
    bias = argument(node, 2, "bias")
    if bias is not None:
        unify(weight[0], tracer.of(bias)[0])
    for dim in (*weight[2:], *x[2:]):
        fix(dim)
    if groups == 1:
        unify(x[1], weight[1])
        tracer.contractions[node] = (weight[1], weight[0])
    else:
        inputs, outputs = leaves(x[1]), leaves(weight[0])
        try:
            ahead, made = split_off(inputs, groups), split_off(outputs, groups)
        except Mismatch:
            return None
        unify(ahead, made)
        unify(leaves(inputs), weight[1])
        if groups < size_of(x[1]):
            fix(x[1])  # each group sums over several channels of its own, which this rule does not trace
            fix(weight[0])
    return [x[0], leaves(weight[0]), *(fixed(size) for size in wanted[2:])]


def convolution_groups(node: Node) -> int:
    place = 8 if "convolution" in str(node.target) else 6
    return int(argument(node, place, "groups", 1))


def kernel(sizes: Sequence[int]) -> int:
    """Return the number of positions that one output of a convolution sees. sizes: the shape of its weight."""
    found = 1
    for size in sizes[2:]:
        found *= size
    return found
