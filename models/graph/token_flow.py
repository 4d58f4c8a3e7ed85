"""Where a graph carries tokens whose number is free to change, and what must change with them.

Between a block's attention and its MLP there is, in a plain residual network, one tensor through which all later values go: its
stream (B, N, D). Tokens that leave there are missed by nobody if, from there to the outputs, every operator treats patches alike
(`token_axes.py`), tables with values for single tokens being read by the tokens that are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Node

import models.graph.token_rules  # noqa: F401  # they make themselves known
from models.graph.halves import GraphBlock, Half
from models.graph.token_axes import Axes, NotFree, Pool, Table, TokenAxes, TokenAxis
from models.graph.trace import Traced
from models.graph.tracer import argument

aten = torch.ops.aten


@dataclass(frozen=True)
class TokenFlow:
    """Of the blocks from some block on. N = prefix + patches tokens."""

    streams: dict[int, Node] = field(default_factory=dict)
    """Of each block whose tokens can be removed: its stream."""
    attentions: dict[int, Node] = field(default_factory=dict)
    """Of these: the softmax, or the fused attention, that tokens are chosen by."""
    prefix: int = 0
    patches: int = 0
    has_class_token: bool = False
    axes: dict[Node, Axes] = field(default_factory=dict)
    """Of each tensor node behind the first stream: its axes that count tokens, as it gives them."""
    tables: tuple[Table, ...] = ()
    pools: tuple[Pool, ...] = ()
    reason: str = ""
    """Where there are no streams: why not."""

    @property
    def tokens(self) -> int:
        return self.prefix + self.patches


def token_flow(traced: Traced, blocks: Sequence[GraphBlock]) -> TokenFlow:
    """From the first block on for which all later operators allow it."""
    moving = _moving(traced)
    streams = _streams(traced, blocks, moving)
    reason = "" if streams else "no tensor between attention and MLP holds all that later layers read"
    for first in streams:
        try:
            return _flow_from(first, traced, blocks, streams, moving)
        except NotFree as error:
            reason = reason or str(error)
    return TokenFlow(reason=reason)


def _flow_from(
    first: int, traced: Traced, blocks: Sequence[GraphBlock], streams: dict[int, Node], moving: set[Node]
) -> TokenFlow:
    """Raises: NotFree."""
    tokens, prefix = traced.tracer.shape(streams[first])[1], prefix_of(streams[first], traced, moving)
    same = {block: s for block, s in streams.items() if block >= first and traced.tracer.shape(s)[1] == tokens}
    attentions = {block: found for block in same if (found := _attention(traced, blocks[block].heads, tokens))}
    usable = {block: same[block] for block in attentions}
    if first not in usable or tokens - prefix < 2:
        raise NotFree(f"{streams[first].name}: its tokens do not attend to each other")
    known = TokenAxes(traced.tracer.sizes, traced.tracer.batch.size, tokens - prefix, lambda node: node not in moving)
    block_of = {stream: block for block, stream in usable.items()}
    given: dict[Node, Axes] = {}
    for node in traced.nodes[traced.nodes.index(streams[first]) :]:
        if node is streams[first]:
            known.axes[node] = {1: TokenAxis(prefix, None)}
        elif node.op == "output":
            if any(known.of(source) for source in node.all_input_nodes):
                raise NotFree("the outputs have values for single tokens")
        else:
            known.visit(node)
        if isinstance(known.of(node), dict) and known.of(node):
            given[node] = known.of(node)
        if node in block_of:
            if known.of(node) != {1: TokenAxis(prefix, known.of(node)[1].block)}:
                raise NotFree(f"{node.name}: other tokens than at the first block")
            known.axes[node] = {1: TokenAxis(prefix, block_of[node])}
    return TokenFlow(
        usable, attentions, prefix, tokens - prefix, prefix > 0 and known.reads_first, given, tuple(known.tables),
        tuple(known.pools),
    )  # fmt: skip


def _moving(traced: Traced) -> set[Node]:
    """Nodes that differ between images; not those that only ask how many there are."""
    found = {traced.images}
    for node in traced.nodes:
        if node.target != "size" and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _streams(traced: Traced, blocks: Sequence[GraphBlock], moving: set[Node]) -> dict[int, Node]:
    """Of each block the last tensor between its halves without which nothing later can be computed."""
    nodes = traced.nodes
    order = {node: place for place, node in enumerate(nodes)}
    open_until, narrow = -1, set()
    for node in nodes:
        if node in moving:
            if open_until <= order[node]:  # all that was there before is used up
                narrow.add(node)
            open_until = max([open_until, *(order[user] for user in node.users if user in moving)])
    found = {}
    for i, block in enumerate(blocks):
        between = nodes[order[block.heads.reader] + 1 : min(order[maker] for maker in block.neurons.makers)]
        ours = [node for node in between if node in narrow and _is_row_of_tokens(traced, node)]
        if ours:
            found[i] = ours[-1]
    return found


def _is_row_of_tokens(traced: Traced, node: Node) -> bool:
    shape = traced.tracer.sizes.get(node)
    return isinstance(shape, tuple) and len(shape) == 3 and traced.dims(node)[0] == [traced.tracer.batch]


def prefix_of(stream: Node, traced: Traced, moving: set[Node]) -> int:
    """How many of its tokens, at the front, come from parameters: class and register tokens."""
    tokens, todo, seen, most = traced.tracer.shape(stream)[1], [(stream, 0)], set(), 0
    while todo:
        node, ahead = todo.pop()
        shape = traced.tracer.sizes.get(node)
        if node in seen or node not in moving or not isinstance(shape, tuple) or len(shape) != 3:
            continue
        seen.add(node)
        if getattr(node.target, "overloadpacket", None) in (aten.cat, aten.concat):
            parts = [part for part in node.args[0] if isinstance(part, Node)]  # type: ignore[union-attr]
            still = [part for part in parts if part not in moving]
            if argument(node, 1, "dim", 0) % 3 == 1 and parts[: len(still)] == still:
                more = ahead + sum(traced.tracer.shape(part)[1] for part in still)
                most = max(most, more)
                todo += [(part, more) for part in parts[len(still) : len(still) + 1]]
        elif shape[1] == tokens - ahead:
            todo += [(source, ahead) for source in node.all_input_nodes]
    return most


def _attention(traced: Traced, half: Half, tokens: int) -> Node | None:
    """Where each of `tokens` attends to each: a fused attention, or a softmax (B, H, N, N)."""
    for mixture in half.mixtures:
        shape = traced.tracer.sizes.get(mixture)
        if not isinstance(shape, tuple) or len(shape) != 4:
            continue
        if getattr(mixture.target, "overloadpacket", None) is aten.scaled_dot_product_attention:
            q, k = (traced.tracer.shape(one) for one in mixture.args[:2])  # type: ignore[arg-type]
            return mixture if len(q) == 4 and q[2] == k[2] == tokens and not argument(mixture, 5, "is_causal") else None
    return next((s for m in half.mixtures if (s := _softmax_before(traced, m, tokens))), None)


def _softmax_before(traced: Traced, mixture: Node, tokens: int) -> Node | None:
    """The nearest one that a product with values reads."""
    node = mixture.args[0]
    while isinstance(node, Node) and node.op == "call_function":
        shape = traced.tracer.sizes.get(node)
        if not isinstance(shape, tuple) or len(shape) != 4:
            return None
        if getattr(node.target, "overloadpacket", None) in (aten.softmax, aten._softmax):
            rows_sum_to_one = node.args[1] in (-1, 3)
            return node if rows_sum_to_one and shape[2] == shape[3] == tokens else None
        node = node.args[0]
    return None
