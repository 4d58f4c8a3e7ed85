"""Tracing rules for operators that mix the values along a dim: reductions, norms, pooling and tables."""

import torch
from torch.fx import Node

from models.graph.tracing.atoms import Dims, fix, fixed, leaves, size_of, unify
from models.graph.tracing.tracer import Tracer, argument, rule

aten = torch.ops.aten


@rule(aten.mean, aten.sum, aten.amax, aten.amin, aten.linalg_vector_norm, aten.std, aten.var, aten.norm)
def reduce(tracer: Tracer, node: Node) -> Dims:
    """Trace a reduction. It fixes its dims: a sum over members without weights cannot be told apart from a norm."""
    dims, wanted = tracer.of(node.args[0]), tracer.shape(node)
    place = 2 if node.target in (aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim) else 1
    which = argument(node, place, "dim")
    which = range(len(dims)) if which is None else [which] if isinstance(which, int) else which
    gone = {axis % len(dims) for axis in which}
    for axis in gone:
        fix(dims[axis])
    if len(wanted) == len(dims):
        return [[] if axis in gone else dim for axis, dim in enumerate(dims)]
    return [dim for axis, dim in enumerate(dims) if axis not in gone]


@rule(aten.softmax, aten._softmax, aten.log_softmax, aten.cumsum)
def softmax(tracer: Tracer, node: Node) -> Dims:
    dims = tracer.of(node.args[0])
    fix(dims[node.args[1]])  # type: ignore[index]
    return dims


@rule(aten.layer_norm, aten.rms_norm)
def layer_norm(tracer: Tracer, node: Node) -> Dims:
    dims = tracer.of(node.args[0])
    count = len(node.args[1])  # type: ignore[arg-type]
    for place in (2, 3) if "layer_norm" in str(node.target) else (2,):
        table = argument(node, place, "weight" if place == 2 else "bias")
        if table is not None:
            for one, other in zip(dims[-count:], tracer.of(table), strict=True):
                unify(one, other)
    for dim in dims[-count:]:
        for atom in leaves(dim):
            atom.normed = True
    return [leaves(dim) for dim in dims]


@rule(aten.group_norm)
def group_norm(tracer: Tracer, node: Node) -> Dims:
    dims = tracer.of(node.args[0])
    fix(dims[1])
    for place in (2, 3):
        if (table := argument(node, place, "weight" if place == 2 else "bias")) is not None:
            unify(dims[1], tracer.of(table)[0])
    return dims


@rule(aten.batch_norm, aten._native_batch_norm_legit_no_training)
def batch_norm(tracer: Tracer, node: Node) -> Dims:
    dims = tracer.of(node.args[0])
    for table in node.args[1:5]:
        if isinstance(table, Node):
            unify(dims[1], tracer.of(table)[0])
    return dims


@rule(
    aten.max_pool2d,
    aten.avg_pool2d,
    aten.adaptive_avg_pool2d,
    aten.adaptive_max_pool2d,
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
    aten.upsample_nearest2d,
    aten.constant_pad_nd,
    aten.pad,
    aten.pixel_shuffle,
)
def pool(tracer: Tracer, node: Node) -> Dims:
    """Trace pooling, resizing or padding. A dim whose size changes becomes a new, fixed dim."""
    dims, wanted = tracer.of(node.args[0]), tracer.shape(node)
    for place, size in enumerate(wanted):
        if size_of(dims[place]) != size:
            fix(dims[place])
            dims[place] = fixed(size)
        elif place >= 2 and "pad" not in str(node.target):
            fix(dims[place])  # the operator mixes values even if the size stays the same
    return dims


@rule(aten.index)
def index(tracer: Tracer, node: Node) -> Dims | None:
    """Trace a table that is indexed along some adjacent dims. The other dims stay."""
    dims, chosen = tracer.of(node.args[0]), node.args[1]
    assert isinstance(chosen, list | tuple)
    read = [place for place, one in enumerate(chosen) if one is not None]
    if read != list(range(read[0], read[-1] + 1)):
        return None
    for place in read:
        fix(dims[place])
    wanted = tracer.shape(node)
    after = dims[read[-1] + 1 :]
    new = wanted[read[0] : len(wanted) - len(after)]
    return [*dims[: read[0]], *(fixed(size) for size in new), *after]


@rule(aten.embedding)
def embedding(tracer: Tracer, node: Node) -> Dims:
    table = tracer.of(node.args[0])
    fix(table[0])
    return [*(fixed(size) for size in tracer.shape(node)[:-1]), table[1]]
