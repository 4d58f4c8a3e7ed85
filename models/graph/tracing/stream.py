"""Finds the residual stream of a graph, if its basis is free.

The stream is one atom: all projections and all second layers of the MLPs write it. Its basis is free if only layers
with weights and stored tables write to it, if only LayerNorms read it, and if only layers with weights read what these
norms give. Operators that rearrange tokens, or add or average them, do not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from models.graph.tracing.atoms import Atom, leaves
from models.graph.tracing.inner_dims import ADDS, REARRANGES
from models.graph.tracing.sublayers import GraphBlock
from models.graph.tracing.trace import Traced
from models.graph.tracing.tracer import argument, packet_of

aten = torch.ops.aten
JOINS = (*ADDS, aten.cat)
AVERAGES = (aten.mean, aten.sum)
READS = (aten.linear, aten.matmul, aten.mm)


@dataclass(frozen=True)
class LayerScale:
    """A product with a stored vector.

    written: the tensors that make what is scaled: the weight, and the bias if there is one.
    """

    node: Node
    gamma: Node
    written: tuple[Node, ...]


@dataclass
class GraphStream:
    """The residual stream of a graph.

    norms: the LayerNorms that read it, each with the layers that read the norm. tables: every stored tensor that has
    the dims of the stream, except those of norms and layer scales.
    """

    atom: Atom
    norms: dict[Node, list[Node]] = field(default_factory=dict)
    tables: list[Node] = field(default_factory=list)
    scales: list[LayerScale] = field(default_factory=list)


class FixedStream(Exception):
    """The basis of the stream is not free. The message says why."""


@dataclass(frozen=True)
class _Value:
    """What a tensor with the dims of the stream holds.

    norm: the LayerNorm that it comes from; None: it is a part of the stream. written: the stored tensors that make it,
    if one layer alone makes it.
    """

    norm: Node | None = None
    written: tuple[Node, ...] = ()


def find_stream(traced: Traced, blocks: Sequence[GraphBlock]) -> GraphStream:
    """Return the residual stream of a graph. Raises: FixedStream."""
    written = [
        leaves(traced.tracer.contractions[use][1]) for b in blocks for half in (b.heads, b.neurons) for use in half.uses
    ]
    if any(len(dim) != 1 or dim != written[0] for dim in written):
        raise FixedStream("the blocks do not write to one residual stream")
    (atom,) = written[0]
    if atom.fixed:
        raise FixedStream("the residual stream is an output, or an operator that is not linear works on it")
    stream, values = GraphStream(atom), dict[Node, _Value]()
    for node in traced.nodes:
        if node.op == "output":
            continue
        found = _value(traced, stream, values, node)
        if found is not None:
            values[node] = found
    targets = [str(node.target) for node in (*stream.tables, *(scale.gamma for scale in stream.scales))]
    if len(set(targets)) < len(targets) or any(len(node.users) != 1 for node in stream.tables):
        raise FixedStream("several operators read one stored tensor of the stream")
    return stream


def _value(traced: Traced, stream: GraphStream, values: dict[Node, _Value], node: Node) -> _Value | None:
    """Return what a node gives if it has the dims of the stream, and add it to what is known of the stream."""
    packet, mine = packet_of(node), [one for one in node.all_input_nodes if one in values]
    here = any(stream.atom in leaves(dim) for dims in traced.tracer.each(node) for dim in dims)
    if node.op == "get_attr":
        return _Value() if here and not _is_of_norm(node) else None
    if node in traced.tracer.contractions:
        return _layer(traced, stream, values, node)
    if not here:
        if mine:
            raise FixedStream(f"{node.name} reads the residual stream")
        return None
    if packet is aten.layer_norm:
        return _norm(traced, stream, values, node)
    if packet is aten.mul and len(mine) == 2:
        return _scaled(stream, values, node)
    others = [one for one in node.all_input_nodes if one not in values and one.op != "call_method"]
    alone = len(mine) == 1 and not others
    kept = packet in (*REARRANGES, *AVERAGES) and alone
    if not kept and not (packet in JOINS and not others and mine and _only_tensors(node, packet)):
        raise FixedStream(f"{node.name} works on the residual stream in its own basis")
    for table in (one for one in mine if one.op == "get_attr"):
        stream.tables.append(table)
    norms = {values[one].norm for one in mine}
    if len(norms) > 1:
        raise FixedStream(f"{node.name} joins the residual stream with what a norm made of it")
    return _Value(norms.pop(), _made(values, mine, packet))


def _only_tensors(node: Node, packet: object) -> bool:
    """Return whether an addition adds tensors, and no number."""
    return packet not in ADDS or all(isinstance(one, Node) for one in node.args[:2])


def _made(values: dict[Node, _Value], mine: Sequence[Node], packet: object) -> tuple[Node, ...]:
    """Return the stored tensors that make a value, if one layer makes it: the layer's own, and a bias behind it."""
    if packet not in ADDS:
        return values[mine[0]].written if len(mine) == 1 else ()
    layers = [values[one].written for one in mine if one.op != "get_attr"]
    biases = [one for one in mine if one.op == "get_attr"]
    return (*layers[0], *biases) if len(layers) == 1 and layers[0] else ()


def _is_of_norm(node: Node) -> bool:
    return any(packet_of(user) in (aten.layer_norm, aten.rms_norm, aten.batch_norm) for user in node.users)


def _layer(traced: Traced, stream: GraphStream, values: dict[Node, _Value], node: Node) -> _Value | None:
    """Take in a layer with weights that reads the stream, or writes to it."""
    over, made = (leaves(dim) for dim in traced.tracer.contractions[node])
    reads, writes = stream.atom in over, stream.atom in made
    if not reads and not writes:
        return None
    weight, bias = node.args[1], argument(node, 2, "bias")
    if not isinstance(weight, Node) or weight.op != "get_attr":
        raise FixedStream(f"the weight of {node.name} is computed")
    source = node.args[0]
    if reads:
        norm = values[source].norm if isinstance(source, Node) and source in values else None
        if norm is None or over != [stream.atom] or packet_of(node) not in READS:
            raise FixedStream(f"{node.name} reads the residual stream without a norm before it")
        stream.norms[norm].append(node)
    if writes and (made != [stream.atom] or reads):
        raise FixedStream(f"{node.name} writes to the residual stream in groups, or reads it as well")
    stream.tables.append(weight)
    if not writes:
        return None
    own = [bias] if isinstance(bias, Node) else []
    stream.tables += own
    return _Value(None, (weight, *own))


def _norm(traced: Traced, stream: GraphStream, values: dict[Node, _Value], node: Node) -> _Value:
    source = node.args[0]
    known = values.get(source) if isinstance(source, Node) else None
    if known is None or known.norm is not None or leaves(traced.dims(node)[-1]) != [stream.atom]:
        raise FixedStream(f"{node.name} normalises what a norm gave, or more than the residual stream")
    if len(node.args[1]) != 1:  # type: ignore[arg-type]
        raise FixedStream(f"{node.name} normalises several dims")
    stream.norms[node] = []
    return _Value(node)


def _scaled(stream: GraphStream, values: dict[Node, _Value], node: Node) -> _Value:
    """Take in a layer scale: a product of what one layer wrote with a stored vector."""
    vectors = [one for one in node.all_input_nodes if one.op == "get_attr"]
    others = [one for one in node.all_input_nodes if one.op != "get_attr"]
    if len(vectors) != 1 or len(others) != 1 or not values[others[0]].written:
        raise FixedStream(f"{node.name} multiplies the residual stream in its own basis")
    stream.scales.append(LayerScale(node, vectors[0], values[others[0]].written))
    return _Value()
