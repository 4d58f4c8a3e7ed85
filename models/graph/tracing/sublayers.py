"""Finds the atoms of a graph that are heads or neurons, block by block.

Heads count the products of an attention, and one layer, the projection, sums over them. One layer makes the neurons
(two layers if the MLP is gated), one layer sums over them, and no attention reads them. If an attention has only one
head, its dims are treated as its heads.
"""

from collections import defaultdict
from dataclasses import dataclass

from torch.fx import Node

from models.graph.tracing.atoms import Atom, Batch, leaves
from models.graph.tracing.products import convolution_groups, kernel
from models.graph.tracing.trace import Traced


@dataclass(frozen=True)
class Half:
    """A sublayer: the attention or the MLP of a block.

    atom: its heads or neurons, which can be cut.
    makers: the products with weights whose outputs have this atom.
    reader: the product with weights that sums over this atom.
    """

    atom: Atom
    makers: tuple[Node, ...]
    reader: Node
    mixtures: tuple[Node, ...] = ()
    """Products of activations (queries with keys, attention with values) that this atom counts, or that sum over it."""


@dataclass(frozen=True)
class GraphBlock:
    heads: Half
    neurons: Half


def find_blocks(traced: Traced) -> list[GraphBlock]:
    """Return the blocks in the order of the graph. An attention without a following MLP is ignored, and vice versa."""
    order = {node: place for place, node in enumerate(traced.nodes)}
    halves = sorted(_halves(traced), key=lambda half: order[half.reader])
    blocks: list[GraphBlock] = []
    waiting: Half | None = None
    for half in halves:
        if half.mixtures:
            waiting = half
        elif waiting is not None and all(order[maker] > order[waiting.reader] for maker in half.makers):
            blocks.append(GraphBlock(waiting, half))
            waiting = None
    return blocks


def _halves(traced: Traced) -> list[Half]:
    tracer = traced.tracer
    makers, readers, counted, summed = (defaultdict[Atom, list[Node]](list) for _ in range(4))
    for node, (inputs, outputs) in tracer.contractions.items():
        for atom in leaves(inputs):
            readers[atom].append(node)
        for atom in leaves(outputs):
            makers[atom].append(node)
    for node, (ahead, over) in tracer.mixtures.items():
        for atom in leaves(ahead):
            counted[atom].append(node)
        for atom in leaves(over):
            summed[atom].append(node)
    found = []
    for atom, made_by in makers.items():
        if atom.fixed or not readers[atom] or not _is_dense(readers[atom][-1], traced):
            continue
        half = Half(atom, tuple(made_by), readers[atom][-1], tuple(counted[atom] or summed[atom]))
        inner = [node for node in readers[atom][:-1] if leaves(tracer.contractions[node][0]) != [atom]]
        if counted[atom]:
            if not inner:  # other readers must sum over heads only, as the layers of talking-heads attention do
                found.append(half)
        elif len(readers[atom]) > 1:
            continue
        elif summed[atom]:
            if not atom.normed and not any(_can_lose_heads(node, traced) for node in summed[atom]):
                found.append(half)
        elif len(made_by) <= 2:
            found.append(half)
    return found


def _can_lose_heads(mixture: Node, traced: Traced) -> bool:
    return any(not isinstance(a, Batch) and not a.fixed for a in leaves(traced.tracer.mixtures[mixture][0]))


def _is_dense(node: Node, traced: Traced) -> bool:
    """Return whether a product can be the reader of a sublayer.

    Its weight must be a parameter that is used unchanged, and each output must see all members at one position.
    """
    weight = node.args[1]
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return False
    if "conv" not in str(node.target):
        return "einsum" not in str(node.target)
    return convolution_groups(node) == 1 and kernel(traced.tracer.shape(node.args[1])) == 1  # type: ignore[arg-type]
