"""Finds the atoms of a graph that are heads or neurons, block by block.

Heads count the products of an attention, and one layer, the projection, sums over them. One layer makes the neurons
(two layers if the MLP is gated), one layer sums over them, and no attention reads them. If an attention has only one
head, its dims are treated as its heads.

A network can use the same weights several times. Then all uses are one block, because a cut of the weights changes
all of them.
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
    uses: the products with weights that sum over this atom. All of them use the weights of one layer, the reader.
    """

    atom: Atom
    makers: tuple[Node, ...]
    uses: tuple[Node, ...]
    mixtures: tuple[Node, ...] = ()
    """Products of activations (queries with keys, attention with values) that this atom counts, or that sum over it."""

    @property
    def reader(self) -> Node:
        """The first use of the layer that sums over this atom."""
        return self.uses[0]

    @property
    def is_shared(self) -> bool:
        """Whether the network uses this sublayer several times, with the same weights."""
        return len(self.uses) > 1


@dataclass(frozen=True)
class GraphBlock:
    heads: Half
    neurons: Half

    @property
    def is_shared(self) -> bool:
        """Whether the network uses this block several times, with the same weights."""
        return self.heads.is_shared or self.neurons.is_shared


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
        uses = tuple(node for node in readers[atom] if _weights(node) == _weights(readers[atom][-1]))
        others = [node for node in readers[atom] if node not in uses]
        half = Half(atom, tuple(made_by), uses, tuple(counted[atom] or summed[atom]))
        inner = [node for node in others if leaves(tracer.contractions[node][0]) != [atom]]
        if counted[atom]:
            if not inner:  # other readers must sum over heads only, as the layers of talking-heads attention do
                found.append(half)
        elif others:
            continue
        elif summed[atom]:
            if not atom.normed and not any(_can_lose_heads(node, traced) for node in summed[atom]):
                found.append(half)
        elif len(set(map(_weights, made_by))) <= 2:
            found.append(half)
    return found


def _weights(node: Node) -> tuple[str, ...]:
    """Return the names of the tensors that a product reads: its matrix, and its bias if it has one."""
    return tuple(str(one.target) for one in node.all_input_nodes if one.op == "get_attr")


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
