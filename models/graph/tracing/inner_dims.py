"""Finds the dims inside the heads of a block: the q/k dims and the v dims, if a basis of them is free.

A basis is free if only products with weights read the dims, so that any invertible map of them can be folded into the
weights. Operators that only rearrange values do not matter. Norms of q and k, and every operator that is not known, fix
a basis. Rotary positions turn pairs of q/k dims: then the pairs, the frequencies, can be chosen
(models/rotation/frequencies.py).
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from models.graph.tracing.atoms import Atom, Dim, is_batch, leaves
from models.graph.tracing.part_products import LAYOUT, PARTINGS
from models.graph.tracing.sublayers import GraphBlock
from models.graph.tracing.trace import Traced
from models.graph.tracing.tracer import argument, packet_of
from models.structure import RotatedAxis

aten = torch.ops.aten
REARRANGES = (
    *LAYOUT,
    *PARTINGS,
    aten.t,
    aten.mT,
    aten.to,
    aten._to_copy,
    aten.type_as,
    aten.alias,
    aten.expand,
    aten.select,
    aten.slice,
    operator.getitem,
)
SCALES = (aten.mul, aten.div)
ADDS = (aten.add, aten.add_)


@dataclass(frozen=True)
class InnerDims:
    """The dims of one kind inside the heads of a block. All heads have the same number of them.

    atom: the dims. makers: the layers that make them, q before k. biases: the tensors that are added to them, one list
    for each maker. mixture: the product of activations that reads them. pair: None, or the two dims of each frequency
    if rotary positions turn them; then `atom` counts frequencies.
    """

    atom: Atom
    makers: tuple[Node, ...]
    biases: tuple[tuple[Node, ...], ...]
    mixture: Node
    pair: Atom | None = None

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The atoms that count the dims. The dims of a frequency come one after the other."""
        return (self.atom,) if self.pair is None else (self.atom, self.pair)


@dataclass(frozen=True)
class InsideHeads:
    """The dims inside the heads of one block that may be rotated. None: their basis is not free."""

    qk: InnerDims | None
    v: InnerDims | None

    def of(self, axis: RotatedAxis) -> InnerDims | None:
        return {"qk": self.qk, "v": self.v, "embed": None}[axis]


def inside_heads(traced: Traced, block: GraphBlock) -> InsideHeads:
    """Return the dims inside the heads of a block whose basis is free."""
    heads, tracer = block.heads, traced.tracer
    columns = [atom for atom in leaves(tracer.contractions[heads.reader][0]) if atom is not heads.atom]
    if len(columns) != 1 or heads.is_shared:
        return InsideHeads(None, None)
    v, pairs = columns[0], []
    for mixture in heads.mixtures:
        read = [atom for atom in leaves(tracer.mixtures[mixture][1]) if atom is not v and not is_batch([atom])]
        made = [atom for atom in read if any(atom in leaves(tracer.contractions[one][1]) for one in heads.makers)]
        pairs += [(atom, mixture) for atom in made]
    values = [node for node in heads.mixtures if v in [atom for dim in tracer.of(node) for atom in leaves(dim)]]
    qk = None
    if len(pairs) == 1:
        qk = _free(traced, block, *pairs[0], sources=(0, 1))
    elif len(pairs) == 2:
        qk = _frequencies(traced, block, pairs)
    found = _free(traced, block, v, values[-1], sources=(2 if _is_fused(values[-1]) else 1,)) if values else None
    return InsideHeads(qk, found)


def _is_fused(mixture: Node) -> bool:
    return packet_of(mixture) is aten.scaled_dot_product_attention


def _free(traced: Traced, block: GraphBlock, atom: Atom, mixture: Node, *, sources: Sequence[int]) -> InnerDims | None:
    """Return the dims of an atom if their basis is free. sources: the arguments of the mixture that have these dims."""
    if atom.fixed or atom.normed or atom is block.heads.atom:
        return None
    touched = [node for node in traced.nodes if _has(traced, node, atom)]
    makers = [_maker(traced, mixture.args[place], atom) for place in sources]
    if any(maker is None for maker in makers) or len({*makers}) != len(makers):
        return None
    if any(user not in touched and not _takes_up(block, user, node) for node in touched for user in node.users):
        return None
    known = [maker for maker in makers if maker is not None]
    biases: dict[Node, list[Node]] = {maker: [] for maker in known}
    for node in touched:
        if node in known:
            biases[node] += [one for one in [argument(node, 2, "bias")] if one is not None]
        elif packet_of(node) in ADDS:
            added = [one for one in node.all_input_nodes if one in traced.tracer.weights]
            maker = _maker(traced, node, atom)
            if len(added) != 1 or added[0].op != "get_attr" or added[0] not in touched or maker not in biases:
                return None
            biases[maker] += added
        elif not _keeps_basis(traced, block, node, atom):
            return None
    weights = {str(one.args[1].target) for one in known if isinstance(one.args[1], Node)}
    stored = [node for node in touched if node.op == "get_attr"]
    reader = {str(block.heads.reader.args[1].target)}  # type: ignore[union-attr]
    allowed = weights | {str(bias.target) for some in biases.values() for bias in some} | reader
    if len(weights) < len(known) or any(str(node.target) not in allowed or len(node.users) > 1 for node in stored):
        return None
    if len({str(node.target) for node in stored}) < len(stored):  # two nodes read the same tensor
        return None
    if any({*leaves(dim)} != {atom, block.heads.atom} for node in stored for dim in traced.dims(node) if atom in dim):
        return None
    return InnerDims(atom, tuple(known), tuple(tuple(biases[maker]) for maker in known), mixture)


def _frequencies(traced: Traced, block: GraphBlock, pairs: Sequence[tuple[Atom, Node]]) -> InnerDims | None:
    """Return the frequencies of rotary positions: an atom that can be cut, and a fixed atom of two dims beside it.

    That it can be cut is what the tracer has found. The layers of q and k must be its only makers, so that a factor for
    each frequency can be folded into them.
    """
    (atom, mixture), (pair, other) = sorted(pairs, key=lambda one: one[0].fixed)
    if atom.fixed or atom.normed or not pair.fixed or pair.size != 2 or mixture is not other:
        return None
    makers = [_first_maker(traced, mixture.args[place], atom) for place in (0, 1)]
    known = [maker for maker in makers if maker is not None]
    made = [node for node, (_, outputs) in traced.tracer.contractions.items() if atom in leaves(outputs)]
    if len(known) < 2 or {*made} != {*known} or len(made) != 2:
        return None
    biases = tuple(tuple(one for one in [argument(maker, 2, "bias")] if one is not None) for maker in known)
    stored = {str(node.target) for node in traced.nodes if node.op == "get_attr" and _has(traced, node, atom)}
    mine = {str(node.target) for maker, some in zip(known, biases, strict=True) for node in (maker.args[1], *some)}
    if stored != mine:  # another tensor is added to q or k, or multiplied with it
        return None
    return InnerDims(atom, tuple(known), biases, mixture, pair)


def _first_maker(traced: Traced, node: object, atom: Atom) -> Node | None:
    """Follow a tensor back to the layer that makes its dims, along the first way."""
    while isinstance(node, Node) and node not in traced.tracer.contractions:
        node = next((one for one in node.all_input_nodes if one not in traced.tracer.weights), None)
    own = isinstance(node, Node) and isinstance(node.args[1], Node) and node.args[1].op == "get_attr"
    return node if own else None  # type: ignore[return-value]


def _has(traced: Traced, node: Node, atom: Atom) -> bool:
    return any(atom in leaves(dim) for dims in traced.tracer.each(node) for dim in dims)


def _keeps_basis(traced: Traced, block: GraphBlock, node: Node, atom: Atom) -> bool:
    """Return whether any map of the dims passes through a node, or is taken up by the product that the node is."""
    if node.op == "get_attr" or node in block.heads.mixtures or node is block.heads.reader:
        return True
    packet = packet_of(node)
    if packet in SCALES:  # by a number, or by a tensor that does not know these dims
        alone = sum(_has(traced, one, atom) for one in node.all_input_nodes) == 1
        first = node.args[0]
        return alone and (packet is aten.mul or (isinstance(first, Node) and _has(traced, first, atom)))
    return packet in REARRANGES


def _takes_up(block: GraphBlock, user: Node, node: Node) -> bool:
    """Return whether the dims may end in a node. `type_as` reads only the type of its second tensor."""
    if user in block.heads.mixtures or user is block.heads.reader:
        return True
    return packet_of(user) is aten.type_as and user.args[1] is node


def _maker(traced: Traced, node: object, atom: Atom) -> Node | None:
    """Follow a tensor back to the layer that makes its dims."""
    while isinstance(node, Node):
        if node in traced.tracer.contractions:
            outputs: Dim = leaves(traced.tracer.contractions[node][1])
            weight = node.args[1]
            own = isinstance(weight, Node) and weight.op == "get_attr"
            return node if atom in outputs and own else None
        behind = [one for one in node.all_input_nodes if one not in traced.tracer.weights and _has(traced, one, atom)]
        if len(behind) != 1:
            return None
        node = behind[0]
    return None
