"""What each operator does to the atoms of its inputs. One rule for each kind of operator; what has none fixes all that it sees,
so an unknown operator costs members that could have been cut and never makes a wrong cut."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from models.graph.atoms import Atom, Batch, Dim, Dims, Mismatch, fix, fixed, leaves, size_of, split_off, unify

aten = torch.ops.aten
Sizes = tuple[int, ...]
Rule = Callable[["Tracer", Node], Any]
METHODS: dict[Any, Any] = {"expand": aten.expand, "repeat": aten.repeat}
"""What is called as a method once the batch is free, so that an exporter sees that the number of images is not constant."""
RULES: dict[Any, Rule] = {}
"""By operator, whatever its overload."""


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return add


class Tracer:
    """Walks a graph once. `dims`: of each tensor node the atoms of its dims; of a node with several outputs a list of those."""

    def __init__(self, sizes: dict[Node, Any], batch: int) -> None:
        """sizes: of each node, its shape (or shapes)."""
        self.sizes, self.batch = sizes, Batch(batch)
        self.dims: dict[Node, Any] = {}
        self.contractions: dict[Node, tuple[Dim, Dim]] = {}
        """Products with weights: node -> (atoms that it sums over, atoms that its weights make)."""
        self.mixtures: dict[Node, tuple[Dim, Dim]] = {}
        """Products of activations: node -> (atoms that count the products, atoms that they sum over)."""
        self.weights: set[Node] = set()
        """Nodes that depend on no input."""

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
        if node.all_input_nodes and all(source in self.weights for source in node.all_input_nodes):
            self.weights.add(node)
        found = self._rule(node)(self, node)
        self.dims[node] = found if found is not None else self.unknown(node)

    def _rule(self, node: Node) -> Rule:
        packet = METHODS.get(node.target, getattr(node.target, "overloadpacket", node.target))
        if packet in RULES:
            return RULES[packet]
        if torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return pointwise
        return lambda tracer, node: tracer.unknown(node)

    def unknown(self, node: Node) -> Any:
        """Fixes all inputs. The first dim goes on as the batch where it has its size."""
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
        """The dims of a node's one tensor, or of each of its several."""
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
        """Of two operands side by side, aligned at their ends."""
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
    """Sizes or repetitions, as an operator or a method has them."""
    return list(node.args[1]) if node.op == "call_function" else list(node.args[1:])  # type: ignore[arg-type]


@rule(aten.hardswish, aten.hardswish_, aten.hardsigmoid, aten.hardsigmoid_, aten.hardtanh, aten.hardtanh_, aten.relu6,
      aten.mish, aten.silu_, aten.gelu_, aten.leaky_relu_, aten.elu_, aten.masked_fill, aten.masked_fill_, aten.pow,
      aten.copy_, aten.copy)  # fmt: skip
def pointwise(tracer: Tracer, node: Node) -> Dims:
    found: Dims = []
    for source in node.all_input_nodes:
        found = tracer.broadcast(found, tracer.of(source)) if found else tracer.of(source)
    return found


@rule(
    aten.dropout, aten.contiguous, aten.clone, aten.to, aten.type_as, aten.alias, aten.detach, aten.detach_, aten._to_copy,
    aten.lift_fresh_copy, aten.feature_dropout, aten.dropout_, aten.roll, aten.flip,
)  # fmt: skip
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
            dims[place] = [tracer.batch] if per_image else [*fixed(count), *dims[place]]
    return dims


@rule(aten.repeat_interleave)
def repeat_interleave(tracer: Tracer, node: Node) -> Dims | None:
    count, place = node.args[1], argument(node, 2, "dim")
    if not isinstance(count, int) or place is None:
        return None
    dims = tracer.of(node.args[0])
    dims[place] = [*dims[place], *fixed(count)]
    return dims


@rule(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze,
      aten.reshape_as, aten.view_as, aten.squeeze_)  # fmt: skip
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


@rule(aten.slice, aten.narrow)
def slice_(tracer: Tracer, node: Node) -> Dims:
    dims, wanted = tracer.of(node.args[0]), tracer.shape(node)
    for place, size in enumerate(wanted):
        if size_of(dims[place]) != size:
            ((dims[place],),) = regrouped([dims[place]], [[size]])
    return dims


def regrouped(dims: Sequence[Dim], sizes: Sequence[Sequence[int]]) -> list[list[Dim]]:
    """Of dims that are cut, or joined, to runs of `sizes` each: the fastest atoms that fit whole into all runs go on, the
    others are fixed."""
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
    """Equal parts are a factor of the dim, slowest; unequal ones are not."""
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
    """Equal weights share their atoms, and are counted by one more; of others the fastest that they have in common stay."""
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


@rule(aten.mean, aten.sum, aten.amax, aten.amin, aten.linalg_vector_norm, aten.std, aten.var, aten.norm)
def reduce(tracer: Tracer, node: Node) -> Dims:
    """Sums over members without weights cannot be told apart from a norm; they fix."""
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


@rule(aten.max_pool2d, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d, aten.upsample_bilinear2d,
      aten.upsample_bicubic2d, aten.upsample_nearest2d, aten.constant_pad_nd, aten.pad, aten.pixel_shuffle,
      )  # fmt: skip
def pool(tracer: Tracer, node: Node) -> Dims:
    """Dims of another size than before are new."""
    dims, wanted = tracer.of(node.args[0]), tracer.shape(node)
    for place, size in enumerate(wanted):
        if size_of(dims[place]) != size:
            fix(dims[place])
            dims[place] = fixed(size)
        elif place >= 2 and "pad" not in str(node.target):
            fix(dims[place])  # where it shrinks nothing it still mixes
    return dims


@rule(aten.index)
def index(tracer: Tracer, node: Node) -> Dims | None:
    """A table read by an index over some of its dims, side by side: the other dims stay."""
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


@rule(aten.linear)
def linear(tracer: Tracer, node: Node) -> Dims:
    x, weight = tracer.of(node.args[0]), tracer.of(node.args[1])
    unify(x[-1], weight[1])
    made = leaves(weight[0])
    bias = argument(node, 2, "bias")
    if bias is not None:
        unify(weight[0], tracer.of(bias)[0])
        made = leaves(weight[0])
    tracer.contractions[node] = (weight[1], weight[0])
    return [*x[:-1], made]


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
            fix(x[1])  # a product inside each group: its members are not counted here
            fix(weight[0])
    return [x[0], leaves(weight[0]), *(fixed(size) for size in wanted[2:])]


def convolution_groups(node: Node) -> int:
    place = 8 if "convolution" in str(node.target) else 6
    return int(argument(node, place, "groups", 1))


def kernel(sizes: Sequence[int]) -> int:
    """Of a convolution's weight: places that one output sees."""
    found = 1
    for size in sizes[2:]:
        found *= size
    return found
