"""Describes a traced graph as a `Structure`. Operations that scale with heads or neurons are stored for one member; all
other operations are its stem."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Literal

import torch
from torch import nn
from torch.fx import Node

from models.errors import UnsupportedModel
from models.graph.tokens.axes import NotFree, TokenAxis
from models.graph.tokens.flow import TokenFlow
from models.graph.tracing.atoms import Atom, Dim, is_batch, leaves, size_of
from models.graph.tracing.capture import stored
from models.graph.tracing.inner_dims import InsideHeads
from models.graph.tracing.products import convolution_groups, kernel
from models.graph.tracing.sublayers import GraphBlock, Half
from models.graph.tracing.trace import Traced
from models.structure import Attention, Axis, Block, Layer, Mlp, Op, OpKind, RotatedAxis, Stage, Structure

aten = torch.ops.aten
NORMS = (aten.layer_norm, aten.rms_norm, aten.batch_norm, aten.group_norm)
ACTIVATIONS = (
    aten.gelu,
    aten.gelu_,
    aten.silu,
    aten.silu_,
    aten.relu,
    aten.relu_,
    aten.hardswish,
    aten.hardswish_,
    aten.tanh,
)
ADDITIONS = (aten.add, aten.add_)
SizeName = Literal["rows", "cols", "inner"]
FIXED: tuple[Axis, ...] = ("embed", "inputs", "qk", "v", "halves")
"""Axes that cannot be cut in a graph. In rotated bases, q/k dims, v dims and the width can be (graph/rotation.py)."""


def describe_graph(
    traced: Traced,
    blocks: Sequence[GraphBlock],
    name: str,
    classes: int,
    *,
    layers: Sequence[Mapping[Layer, Sequence[str]]],
    flow: TokenFlow,
    inside: Sequence[InsideHeads] = (),
    free: Sequence[RotatedAxis] = (),
    stream: Atom | None = None,
) -> Structure:
    """Describe a traced graph.

    layers: for each block, the names of the nodes that are its linear layers. inside: the dims inside the heads of each
    block. free: the kinds of them that can be cut. stream: the dims of the residual stream, if they can be cut.
    Raises: UnsupportedModel when there is nothing to cut; NotFree when the cost of fewer tokens cannot be derived.
    """
    if not blocks:
        raise UnsupportedModel(
            f"The graph of {name} has no attention and MLP whose heads and neurons vitfit can cut. Use a model with"
            " blocks of attention and MLP.",
            reasons=["no attention and MLP whose heads and neurons can be cut"],
        )
    counted = _Counted(traced, {node: layer for block in layers for layer, nodes in block.items() for node in nodes})
    owner = {half.atom: half for block in blocks for half in (block.heads, block.neurons)}
    dims = {found.atom: axis for heads in inside for axis in free if (found := heads.of(axis)) is not None}
    rest: list[Op] = []
    parts: dict[Atom, list[Op]] = {atom: [] for atom in owner}
    for node in traced.nodes:
        axes = [(name, axis) for name, axis in token_sizes(traced, node, flow) if axis.block is not None]
        behind = next((axis.block for _, axis in axes), None)
        for op, atoms in counted.ops(node):
            op = _of_any_width(_of_one_token(op, axes, flow), atoms, stream)
            mine = next((atom for atom in owner if atom in atoms), None)
            if mine is not None:
                parts[mine].append(_of_one_dim(_of_one(op, atoms[mine], mine.size), atoms, dims))
            elif behind is not None and op.tokens:
                parts[blocks[behind].neurons.atom].append(op)
            else:
                rest.append(op)
    made = [_block(traced, block, f"{i}", parts, flow=flow) for i, block in enumerate(blocks)]
    if inside:
        made = [_with_dims(block, heads, free) for block, heads in zip(made, inside, strict=True)]
    return Structure(
        name,
        traced.image,
        classes,
        flow.prefix,
        flow.has_class_token,
        tuple(rest),
        tuple(_stages(made, flow)),
        (),
        tuple(axis for axis in FIXED if axis not in free),
    )


def _with_dims(block: Block, inside: InsideHeads, free: Sequence[RotatedAxis]) -> Block:
    """Return a block with the numbers of the dims inside its heads that can be cut."""
    shape = block.attention
    assert shape is not None
    qk = inside.qk.atom.size if inside.qk is not None and "qk" in free else shape.qk_dim
    v = inside.v.atom.size if inside.v is not None and "v" in free else shape.v_dim
    return dataclasses.replace(block, attention=dataclasses.replace(shape, qk_dim=qk, v_dim=v))


def _of_one_dim(op: Op, atoms: Mapping[Atom, str], dims: Mapping[Atom, RotatedAxis]) -> Op:
    """Return an operation of one head with its sizes for one q/k dim and one v dim."""
    for atom, axis in dims.items():
        if atom in atoms:
            name = atoms[atom]
            one = {axis: name, name: getattr(op, name) // atom.size}
            op = dataclasses.replace(op, **one)
    return op


def _of_any_width(op: Op, atoms: Mapping[Atom, str], stream: Atom | None) -> Op:
    """Return an operation with the name of its size that is the width of the residual stream."""
    field = None if stream is None else atoms.get(stream)
    if stream is None or field not in ("inner", "cols") or getattr(op, field) != stream.size:
        return op
    return dataclasses.replace(op, width_field=field)  # type: ignore[arg-type]


def _stages(blocks: Sequence[Block], flow: TokenFlow) -> Iterator[Stage]:
    """Group consecutive blocks whose tokens can be removed into one stage. Every other block is a stage of its own."""
    place = 0
    while place < len(blocks):
        free = place
        while free in flow.streams:
            free += 1
        some = tuple(blocks[place : max(free, place + 1)])
        behind = bool(flow.streams) and place > min(flow.streams)
        yield Stage(f"{place}", some, free_tokens=free > place, follows=behind, in_graph=free > place)
        place += len(some)


def _block(traced: Traced, block: GraphBlock, number: str, parts: dict[Atom, list[Op]], *, flow: TokenFlow) -> Block:
    heads, neurons = block.heads, block.neurons
    dim = members_of(traced, heads)[1]
    width = traced.tracer.shape(block.neurons.reader)
    channels = size_of(traced.tracer.contractions[neurons.reader][1])
    tokens = max(1, prod(width) // channels // traced.tracer.batch.size)
    if flow.streams and int(number) >= min(flow.streams):
        tokens = flow.tokens
    return Block(
        name_of(heads) or number,
        channels,
        tokens,
        Attention(heads.atom.size, dim, dim, channels, heads.atom.size * dim, parts=tuple(parts[heads.atom])),
        Mlp(channels, neurons.atom.size, parts=tuple(parts[neurons.atom])),
    )


def name_of(half: Half) -> str:
    """Return the name of the module that contains a sublayer, taken from the name of its reader's weight."""
    weight = half.reader.args[1]
    return ".".join(str(weight.target).split(".")[:-3]) if isinstance(weight, Node) else ""


def members_of(traced: Traced, half: Half) -> tuple[int, int]:
    """Return the number of members of a sublayer, and the number of its reader's inputs for each member."""
    inputs = size_of(traced.tracer.contractions[half.reader][0])
    return half.atom.size, inputs // half.atom.size


def token_sizes(traced: Traced, node: Node, flow: TokenFlow) -> list[tuple[SizeName, TokenAxis]]:
    """Return which sizes of a node's operation count tokens, each with the token axis that it counts."""
    mine = flow.axes.get(node, {})
    found: list[tuple[SizeName, TokenAxis]] = []
    last = len(traced.tracer.shape(node)) - 1 if mine else 0
    packet = getattr(node.target, "overloadpacket", None)
    fused = packet is aten.scaled_dot_product_attention
    product = node in traced.tracer.contractions
    for place, axis in mine.items():
        found.append(("cols" if place == last and not fused and not product else "rows", axis))
    if node in traced.tracer.mixtures:
        source = node.args[1] if fused else node.args[0]
        axes = flow.axes.get(source, {}) if isinstance(source, Node) else {}
        for place, axis in axes.items():
            if place == len(traced.tracer.shape(source)) - (2 if fused else 1):  # type: ignore[arg-type]
                found.append(("cols" if fused else "inner", axis))
    return found


def _of_one_token(op: Op, axes: Sequence[tuple[SizeName, TokenAxis]], flow: TokenFlow) -> Op:
    """Return the operation with its sizes for one token. A table is unchanged: its parameters do not depend on tokens.

    Raises: NotFree.
    """
    if not axes or op.kind == "table":
        return op
    sizes: dict[str, int] = {}
    for name, axis in axes:
        length = axis.before + flow.patches
        if sizes.get(name, getattr(op, name)) % length:
            raise NotFree(f"{op.name}: its size {name} is not a multiple of its number of tokens")
        sizes[name] = sizes.get(name, getattr(op, name)) // length
    before = {axis.before for _, axis in axes}
    if len(before) > 1:
        raise NotFree(f"{op.name}: processes two kinds of tokens")
    return dataclasses.replace(
        op,
        tokens=tuple(name for name, _ in axes),
        shift=before.pop() - flow.prefix,
        **sizes,  # type: ignore[arg-type]
    )


def _of_one(op: Op, field: str, size: int) -> Op:
    tagged = dataclasses.replace(op, members=field)  # type: ignore[arg-type]
    sizes: dict[str, int] = {name: getattr(op, name) // size for name in tagged.counted_by}
    return dataclasses.replace(tagged, **sizes)  # type: ignore[arg-type]


class _Counted:
    """Lists the operations of nodes. Each weight is counted at the first node that reads it."""

    def __init__(self, traced: Traced, layers: Mapping[str, Layer]) -> None:
        self.traced, self.tracer, self.layers = traced, traced.tracer, layers
        self.seen: set[str] = set()

    def ops(self, node: Node) -> list[tuple[Op, dict[Atom, str]]]:
        """Return the operations of a node, each with the atoms that scale it and the size that each atom scales."""
        packet = getattr(node.target, "overloadpacket", None)
        shape = self.tracer.sizes.get(node)
        if node.op not in ("call_function", "call_method"):
            return []
        if node in self.tracer.weights:  # it depends on weights only, so it is computed once, when a file is loaded
            return self._tables(node, ())
        if not isinstance(shape, tuple):
            return []
        product = node in self.tracer.contractions or packet is aten.conv2d
        found = [] if packet in NORMS else self._tables(node, node.args[1:3] if product else ())
        if product:
            return [*found, self._product(node)]
        if node in self.tracer.mixtures:
            return [*found, self._mixture(node)]
        kind: OpKind | None = "norm" if packet in NORMS else "activation" if packet in ACTIVATIONS else None
        if kind is None and packet in ADDITIONS and len(node.all_input_nodes) > 1:
            kind = "add"
        if kind is not None:
            found.append(self._values(node, kind))
        return found

    def _new(self, node: object) -> bool:
        """Return whether a node is a parameter that no operation has counted yet, and mark it as counted."""
        if not isinstance(node, Node) or node.op != "get_attr" or str(node.target) in self.seen:
            return False
        if not isinstance(stored(self.traced.graph, node), nn.Parameter):
            return False
        self.seen.add(str(node.target))
        return True

    def _per_image(self, node: Node) -> int:
        total = prod(self.tracer.shape(node))
        free = any(is_batch(dim) for dim in self.tracer.of(node))
        return total // self.tracer.batch.size if free else total

    def _product(self, node: Node) -> tuple[Op, dict[Atom, str]]:
        conv = getattr(node.target, "overloadpacket", None) in (aten.conv2d, aten.convolution)
        plain = conv or getattr(node.target, "overloadpacket", None) is aten.linear
        weight = node.args[1] if plain else next(one for one in node.all_input_nodes if one in self.tracer.weights)
        new = self._new(weight)
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        with_bias = isinstance(bias, Node) and self._new(bias)
        if conv:
            groups, sizes = convolution_groups(node), self.tracer.shape(node.args[1])  # type: ignore[arg-type]
            cols, inner = sizes[0] // groups, sizes[1] * kernel(sizes)
            made, over = self.tracer.of(node.args[1])[0], self.tracer.of(node.args[1])[1]
        else:
            over, made = (leaves(dim) for dim in self.tracer.contractions[node])
            groups, cols, inner = 1, size_of(made), size_of(over)
        rows = self._per_image(node) // max(1, groups * cols)
        op = Op(
            "conv" if conv else "matmul",
            self._name(node),
            rows,
            cols,
            inner=inner,
            count=groups,
            weights=new,
            bias=with_bias and new,
        )
        scales = dict.fromkeys((atom for dim in self.tracer.of(node) for atom in leaves(dim)), "rows")
        scales |= dict.fromkeys(over, "inner")
        return op, scales | dict.fromkeys(made, "count" if groups > 1 else "cols")

    def _name(self, node: Node) -> str:
        """Return the name of a node's operation.

        A linear layer's name ends with its role: only such layers are quantised.
        """
        layer = self.layers.get(node.name)
        return f"{node.name}.{layer}" if layer else node.name

    def _mixture(self, node: Node) -> tuple[Op, dict[Atom, str]]:
        dims = self.tracer.of(node)
        if getattr(node.target, "overloadpacket", None) is aten.scaled_dot_product_attention:
            (*_, rows, inner), (*_, cols, depth) = (self.tracer.shape(node.args[i]) for i in (0, 2))  # type: ignore[arg-type]
            count = self._per_image(node) // (rows * depth)
        else:
            shape = self.tracer.shape(node)
            inner = size_of(self.tracer.mixtures[node][1])
            rows, cols, depth = (*shape[-2:], 0) if len(shape) > 1 else (1, shape[-1], 0)
            count = self._per_image(node) // (rows * cols)
        op = Op("attention", node.name, rows, cols, inner=inner, depth=depth, count=count)
        scales = {atom: "count" for dim in dims for atom in leaves(dim)}
        if depth:
            one, other = (set(leaves(dim)) for dim in (self.tracer.of(node.args[0])[-1], dims[-1]))
            scales |= dict.fromkeys(one - other, "inner") | dict.fromkeys(other - one, "depth")
            scales |= dict.fromkeys(one & other, "dims")
        else:  # an attention of one head is cut by its dims: the product sums over them, or its result has them
            scales |= dict.fromkeys(leaves(self.tracer.mixtures[node][1]), "inner")
            if len(dims) > 1:
                scales |= dict.fromkeys(leaves(dims[-1]), "cols") | dict.fromkeys(leaves(dims[-2]), "rows")
            scales |= dict.fromkeys(leaves(self.tracer.mixtures[node][0]), "count")
        return op, scales

    def _values(self, node: Node, kind: OpKind) -> tuple[Op, dict[Atom, str]]:
        """Return an operation that treats each value on its own, or a norm with its weights."""
        dims = self.tracer.of(node)
        if kind == "norm":
            tables = [one for one in node.all_input_nodes if self._new(one)]
            size = prod(self.tracer.shape(tables[0])) if tables else self.tracer.shape(node)[-1]
            rows = self._per_image(node) // size
            op = Op("norm", node.name, rows, size, weights=bool(tables), bias=len(tables) > 1)
            inside = {atom for table in tables for dim in self.tracer.of(table) for atom in leaves(dim)}
        else:
            size = self.tracer.shape(node)[-1]
            op = Op(kind, node.name, self._per_image(node) // size, size)
            inside = set(leaves(dims[-1]))
        return op, {atom: "cols" if atom in inside else "rows" for dim in dims for atom in leaves(dim)}

    def _tables(self, node: Node, own: Sequence[object]) -> list[tuple[Op, dict[Atom, str]]]:
        """Return the parameters that a node reads, except its own weights (`own`), as operations."""
        found = []
        for table in node.all_input_nodes:
            if table not in own and self._new(table):
                dims = self.tracer.of(table)
                last: Dim = dims[-1] if dims else []
                cols = size_of(last)
                rows = prod(self.tracer.shape(table)) // cols
                scales = {atom: "cols" if atom in last else "rows" for dim in dims for atom in leaves(dim)}
                found.append((Op("table", str(table.target), rows, cols, weights=True), scales))
        return found
