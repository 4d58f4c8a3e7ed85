"""Finds the points of a graph at which tokens can be removed, and everything that must change with their number.

In a plain residual network, there is one tensor between the attention and the MLP of a block on which all later
values depend: the stream of the block (B, N, D). Tokens can be removed there if every operator from this point to the
outputs treats all patches alike (models/graph/tokens/axes.py). Tables with values for single tokens are no obstacle:
they are read only for the tokens that remain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Node

import models.graph.tokens.rules  # noqa: F401  # the import registers the rules
from models.graph.tokens.axes import Axes, NotFree, Pool, Table, TokenAxes, TokenAxis
from models.graph.tracing.sublayers import GraphBlock, Half
from models.graph.tracing.trace import Traced
from models.graph.tracing.tracer import argument

aten = torch.ops.aten


@dataclass(frozen=True)
class TokenFlow:
    """The token flow behind the first block that can remove tokens. It has N = prefix + patches tokens."""

    streams: dict[int, Node] = field(default_factory=dict)
    """The stream of each block whose tokens can be removed."""
    attentions: dict[int, Node] = field(default_factory=dict)
    """For the same blocks: the softmax or the fused attention by which tokens are ranked."""
    prefix: int = 0
    patches: int = 0
    has_class_token: bool = False
    axes: dict[Node, Axes] = field(default_factory=dict)
    """The token axes of each tensor node behind the first stream, before a reduction at this node."""
    tables: tuple[Table, ...] = ()
    pools: tuple[Pool, ...] = ()
    reason: str = ""
    """Why no tokens can be removed, if there are no streams."""

    @property
    def tokens(self) -> int:
        return self.prefix + self.patches


def token_flow(traced: Traced, blocks: Sequence[GraphBlock]) -> TokenFlow:
    """Find the first block that can remove tokens, and return the token flow behind it.

    A block can remove tokens if all operators behind it allow fewer tokens."""
    if any(block.is_shared for block in blocks):
        return TokenFlow(reason="several blocks share their weights")
    moving = _moving(traced)
    rows = _rows(traced, moving)
    streams = _streams(traced, blocks, rows)
    reason = "" if streams else "no tensor between attention and MLP holds all values that later layers read"
    for first in streams:
        try:
            return _flow_from(first, traced, blocks, streams, rows=rows, moving=moving)
        except NotFree as error:
            reason = reason or str(error)
    return TokenFlow(reason=reason)


def _flow_from(
    first: int,
    traced: Traced,
    blocks: Sequence[GraphBlock],
    streams: dict[int, Node],
    *,
    rows: Sequence[Node],
    moving: set[Node],
) -> TokenFlow:
    """Return the token flow from the block `first` on. Raises: NotFree."""
    tokens, prefix = traced.tracer.shape(streams[first])[1], prefix_of(streams[first], traced, moving)
    order = {node: place for place, node in enumerate(traced.nodes)}
    begin = min(order[maker] for maker in blocks[first].heads.makers)
    entering = [row for row in rows if order[row] < begin and traced.tracer.shape(row)[1] == tokens]
    if not entering or tokens - prefix < 2:
        raise NotFree(f"{streams[first].name}: its tokens are not those that enter the block")
    known = TokenAxes(
        traced.tracer.sizes,
        traced.tracer.batch.size,
        tokens - prefix,
        lambda node: node not in moving,
        images_first=lambda node: traced.dims(node)[:1] == [[traced.tracer.batch]],
    )
    known.axes[entering[-1]] = {1: TokenAxis(prefix, None)}
    block_of = {stream: block for block, stream in streams.items() if block >= first}
    usable: dict[int, Node] = {}
    attentions: dict[int, Node] = {}
    given: dict[Node, Axes] = {}
    for node in traced.nodes[order[entering[-1]] + 1 :]:
        _visit(known, node)
        axes = known.of(node)
        if isinstance(axes, dict) and axes:
            given[node] = axes
        block = block_of.get(node)
        attention = None if block is None else _attention(known, blocks[block].heads)
        if block is not None and attention is not None and axes == {1: TokenAxis(prefix, max(usable, default=None))}:
            usable[block], attentions[block] = node, attention
            known.axes[node] = {1: TokenAxis(prefix, block)}
        elif block == first:
            raise NotFree(f"{node.name}: its tokens do not attend to each other")
    return TokenFlow(
        usable,
        attentions,
        prefix,
        tokens - prefix,
        prefix > 0 and known.reads_first,
        given,
        tuple(known.tables),
        tuple(known.pools),
    )


def _visit(known: TokenAxes, node: Node) -> None:
    """Find the token axes of a node. Raises: NotFree."""
    if node.op == "output":
        if any(known.of(source) for source in node.all_input_nodes):
            raise NotFree("the outputs have values for single tokens")
        return
    try:
        known.visit(node)
    except (AssertionError, LookupError, TypeError, ValueError) as error:  # the rule does not cover this use
        raise NotFree(f"{node.name}: what {node.target} does to tokens is not known") from error


def _moving(traced: Traced) -> set[Node]:
    """Return the nodes whose values depend on the images. Nodes that only read the number of images do not count."""
    found = {traced.images}
    for node in traced.nodes:
        if node.target != "size" and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _rows(traced: Traced, moving: set[Node]) -> list[Node]:
    """Return, in the order of the graph, the token tensors (B, N, D) on which all later values depend."""
    order = {node: place for place, node in enumerate(traced.nodes)}
    open_until, found = -1, []
    for node in traced.nodes:
        if node in moving:
            if open_until <= order[node] and _is_row_of_tokens(traced, node):  # no later node reads an earlier value
                found.append(node)
            open_until = max([open_until, *(order[user] for user in node.users if user in moving)])
    return found


def _streams(traced: Traced, blocks: Sequence[GraphBlock], rows: Sequence[Node]) -> dict[int, Node]:
    """Return, for each block, the last of these token tensors between its attention and its MLP."""
    order = {node: place for place, node in enumerate(traced.nodes)}
    found = {}
    for i, block in enumerate(blocks):
        begin, end = order[block.heads.reader], min(order[maker] for maker in block.neurons.makers)
        ours = [row for row in rows if begin < order[row] < end]
        if ours:
            found[i] = ours[-1]
    return found


def _is_row_of_tokens(traced: Traced, node: Node) -> bool:
    shape = traced.tracer.sizes.get(node)
    return isinstance(shape, tuple) and len(shape) == 3 and traced.dims(node)[0] == [traced.tracer.batch]


def prefix_of(stream: Node, traced: Traced, moving: set[Node]) -> int:
    """Return how many tokens at the front of a stream come from parameters: class and register tokens."""
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


def _attention(known: TokenAxes, half: Half) -> Node | None:
    """Return the node in which each token attends to each token: a fused attention, or a softmax (B, H, N, N).

    Return None if there is no such node.
    """
    for mixture in half.mixtures:
        if getattr(mixture.target, "overloadpacket", None) is aten.scaled_dot_product_attention:
            q, k = mixture.args[:2]
            whole = _counts(known, q, [2]) and known.of(q) == known.of(k)
            same_heads = whole and known.shape(q)[1] == known.shape(k)[1]  # type: ignore[arg-type]
            return mixture if same_heads and known.images_first(mixture) else None
    return next((found for mixture in half.mixtures if (found := _softmax_before(known, mixture))), None)


def _counts(known: TokenAxes, node: object, places: Sequence[int]) -> bool:
    """Return whether a tensor has four dims and counts tokens at exactly these places."""
    return isinstance(node, Node) and len(known.shape(node)) == 4 and sorted(known.of(node)) == list(places)


def _softmax_before(known: TokenAxes, mixture: Node) -> Node | None:
    """Return the nearest softmax before a product with values.

    Return None if there is none, or if it is not an attention of each token to each token.
    """
    node = mixture.args[0]
    while isinstance(node, Node) and node.op == "call_function":
        if getattr(node.target, "overloadpacket", None) in (aten.softmax, aten._softmax):
            rows_sum_to_one = node.args[1] in (-1, 3)
            return node if rows_sum_to_one and _counts(known, node, [2, 3]) and known.images_first(node) else None
        node = node.args[0]
    return None
