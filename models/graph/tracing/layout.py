"""Tracing rules for operators that rearrange values: reshapes, permutations, slices and concatenations."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from models.graph.tracing.atoms import Dim, Dims, Mismatch, fix, fixed, leaves, size_of, split_off, unify
from models.graph.tracing.tracer import RULES, Tracer, argument, numbers, rule

aten = torch.ops.aten
RESHAPES = (
    aten.view,
    aten.reshape,
    aten._unsafe_view,
    aten.flatten,
    aten.squeeze,
    aten.unsqueeze,
    aten.reshape_as,
    aten.view_as,
    aten.squeeze_,
)
"""Operators that keep all values in order, and change only how they are split into dims."""


@rule(
    aten.dropout,
    aten.contiguous,
    aten.clone,
    aten.to,
    aten.type_as,
    aten.alias,
    aten.detach,
    aten.detach_,
    aten._to_copy,
    aten.lift_fresh_copy,
    aten.feature_dropout,
    aten.dropout_,
    aten.roll,
    aten.flip,
)
def same(tracer: Tracer, node: Node) -> Dims:
    dims = tracer.of(node.args[0])
    moved = argument(node, 2, "dims", ()) if "roll" in str(node.target) else ()
    moved = argument(node, 1, "dims", ()) if "flip" in str(node.target) else moved
    for place in moved:
        fix(dims[place])
    return dims


@rule(aten.expand_as)
def expand_as(tracer: Tracer, node: Node) -> Dims:
    return tracer.broadcast(tracer.of(node.args[0]), tracer.of(node.args[1]))


@rule(aten.expand, aten.broadcast_to)
def expand(tracer: Tracer, node: Node) -> Dims:
    dims, wanted = tracer.of(node.args[0]), tracer.shape(node)
    dims = [[] for _ in range(len(wanted) - len(dims))] + dims
    images = [isinstance(size, Node) for size in numbers(node)]
    return [
        [tracer.batch]
        if per_image
        else dim
        if size_of(dim) == size
        else [tracer.batch]
        if size == tracer.batch.size
        else fixed(size)
        for dim, size, per_image in zip(dims, wanted, images, strict=True)
    ]


@rule(aten.repeat)
def repeat(tracer: Tracer, node: Node) -> Dims:
    dims, times = tracer.of(node.args[0]), numbers(node)
    dims = [[] for _ in range(len(times) - len(dims))] + dims
    for place, count in enumerate(times):
        if count != 1:
            per_image = isinstance(count, Node) or (size_of(dims[place]) == 1 and count == tracer.batch.size)
            dims[place] = [*([tracer.batch] if per_image else fixed(count)), *dims[place]]
    return dims


@rule(aten.repeat_interleave)
def repeat_interleave(tracer: Tracer, node: Node) -> Dims | None:
    count, place = node.args[1], argument(node, 2, "dim")
    if not isinstance(count, int) or place is None:
        return None
    dims = tracer.of(node.args[0])
    dims[place] = [*dims[place], *fixed(count)]
    return dims


@rule(*RESHAPES)
def reshape(tracer: Tracer, node: Node) -> Dims | None:
    pending = [atom for dim in tracer.of(node.args[0]) for atom in dim]
    found: Dims = []
    try:
        for size in tracer.shape(node):
            found.append(split_off(pending, size))
        if leaves(pending):
            found[-1] = [*found[-1], *leaves(pending)]
    except Mismatch:
        return None
    return found


@rule(aten.permute)
def permute(tracer: Tracer, node: Node) -> Dims:
    dims = tracer.of(node.args[0])
    return [dims[place] for place in argument(node, 1, "dims")]


@rule(aten.transpose, aten.swapaxes, aten.transpose_)
def transpose(tracer: Tracer, node: Node) -> Dims:
    dims = tracer.of(node.args[0])
    a, b = node.args[1], node.args[2]
    dims[a], dims[b] = dims[b], dims[a]  # type: ignore[index]
    return dims


@rule(aten.t, aten.numpy_T, aten.mT)
def turned(tracer: Tracer, node: Node) -> Dims:
    *rest, a, b = tracer.of(node.args[0])
    return [*rest, b, a]


@rule(aten.movedim)
def movedim(tracer: Tracer, node: Node) -> Dims | None:
    source, target = node.args[1], node.args[2]
    if not isinstance(source, int) or not isinstance(target, int):
        return None
    dims = tracer.of(node.args[0])
    rank = len(dims)
    dims.insert(target % rank, dims.pop(source % rank))
    return dims


@rule(aten.select)
def select(tracer: Tracer, node: Node) -> Dims:
    dims = tracer.of(node.args[0])
    fix(dims.pop(argument(node, 1, "dim", 0)))
    return dims


@rule(aten.unbind)
def unbind(tracer: Tracer, node: Node) -> list[Dims]:
    dims = tracer.of(node.args[0])
    fix(dims.pop(argument(node, 1, "dim", 0)))
    return [list(dims) for _ in tracer.sizes[node]]


@rule(aten.slice)
def slice_(tracer: Tracer, node: Node) -> Dims:
    """Trace a slice. One of several equal parts keeps the faster factor of the dim.

    Every second member (or every third, and so on) keeps the slower factor. Any other part keeps only the atoms that
    `regrouped` finds.
    """
    dims, wanted = tracer.of(node.args[0]), tracer.shape(node)
    for place, size in enumerate(wanted):
        total = size_of(dims[place])
        if total == size:
            continue
        _, _, start, _, step = node.args
        pending = list(dims[place])
        try:
            if size > 1 and total % size == start % size == 0 and step == 1:  # type: ignore[operator]
                fix(split_off(pending, total // size))
                dims[place] = leaves(pending)
                continue
            if size * step == total:  # type: ignore[operator]
                slower = split_off(pending, size)
                fix(pending)
                dims[place] = slower
                continue
        except Mismatch:
            pass
        ((dims[place],),) = regrouped([dims[place]], [[size]])
    return dims


def regrouped(dims: Sequence[Dim], sizes: Sequence[Sequence[int]]) -> list[list[Dim]]:
    """Return the dims that result if dims are split into, or joined to, runs of the given sizes.

    The fastest atoms stay if all dims have them and if their product divides the size of every run. The other atoms are
    fixed.
    """
    shared = 0
    every = [size for some in sizes for size in some]
    first = leaves(dims[0])
    for count in range(1, len(first) + 1):
        tail = first[len(first) - count :]
        if any(leaves(dim)[-count:] != tail for dim in dims) or any(size % size_of(tail) for size in every):
            break
        shared = count
    tail = first[len(first) - shared :]
    for dim in dims:
        fix(leaves(dim)[: len(leaves(dim)) - shared])
    return [[[*fixed(size // size_of(tail)), *tail] for size in some] for some in sizes]


@rule(aten.split, aten.chunk, aten.split_with_sizes, aten.tensor_split)
def split(tracer: Tracer, node: Node) -> list[Dims]:
    """Trace a split. The number of equal parts is the slowest factor of the dim, so the other factors stay.

    Unequal parts keep only the atoms that `regrouped` finds.
    """
    dims, wanted = tracer.of(node.args[0]), tracer.sizes[node]
    place = argument(node, 2, "dim", 0) % len(dims)
    sizes = [shape[place] for shape in wanted]
    if len(set(sizes)) == 1:
        pending = list(dims[place])
        try:
            fix(split_off(pending, len(wanted)))
            return [[*dims[:place], leaves(pending), *dims[place + 1 :]] for _ in wanted]
        except Mismatch:
            pass
    (parts,) = regrouped([dims[place]], [sizes])
    return [[*dims[:place], part, *dims[place + 1 :]] for part in parts]


@rule(aten.cat, aten.concat)
def cat(tracer: Tracer, node: Node) -> Dims:
    """Trace a concatenation. Weights of equal size share their atoms, and one more, fixed atom counts the weights.

    Other tensors keep the fastest atoms that they have in common.
    """
    sources = [source for source in node.args[0] if 0 not in tracer.shape(source)]  # type: ignore[union-attr, arg-type]
    parts = [tracer.of(source) for source in sources]
    place = argument(node, 1, "dim", 0) % len(parts[0])
    found = parts[0]
    for part in parts[1:]:
        for i, (one, other) in enumerate(zip(found, part, strict=True)):
            if i != place:
                unify(one, other)
    sizes = [size_of(part[place]) for part in parts]
    if len(set(sizes)) == 1 and all(source in tracer.weights for source in sources):
        for part in parts[1:]:
            unify(found[place], part[place])
        found[place] = [*fixed(len(parts)), *leaves(found[place])]
        return found
    joined = [part[place] for part in parts]
    ((found[place],),) = regrouped(joined, [[sum(sizes)]])
    return found


@rule(aten.stack)
def stack(tracer: Tracer, node: Node) -> Dims:
    found: Dims = []
    for source in node.args[0]:  # type: ignore[union-attr]
        found = tracer.broadcast(found, tracer.of(source)) if found else tracer.of(source)
    found.insert(argument(node, 1, "dim", 0) % (len(found) + 1), fixed(len(node.args[0])))  # type: ignore[arg-type]
    return found


def getitem(tracer: Tracer, node: Node) -> Any:
    return tracer.dims[node.args[0]][node.args[1]]  # type: ignore[index]


RULES[operator.getitem] = getitem
