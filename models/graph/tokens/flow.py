"""Where a graph carries tokens whose number is free to change, and what must change with them.

Between a block's attention and its MLP there is, in a plain residual network, one tensor through which all later values go: its
stream (B, N, D). Tokens that leave there are missed by nobody if, from there to the outputs, every operator treats patches alike
(`token_axes.py`), tables with values for single tokens being read by the tokens that are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Node

import models.graph.tokens.rules  # noqa: F401  # they make themselves known
from models.graph.tokens.axes import Axes, NotFree, Pool, Table, TokenAxes, TokenAxis
from models.graph.tracing.sublayers import GraphBlock, Half
from models.graph.tracing.trace import Traced
from models.graph.tracing.tracer import argument

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
    rows = _rows(traced, moving)
    streams = _streams(traced, blocks, rows)
    reason = "" if streams else "no tensor between attention and MLP holds all that later layers read"
    for first in streams:
        try:
            return _flow_from(first, traced, blocks, streams, rows, moving)
        except NotFree as error:
            reason = reason or str(error)
    return TokenFlow(reason=reason)


def _flow_from(
    first: int, traced: Traced, blocks: Sequence[GraphBlock], streams: dict[int, Node], rows: Sequence[Node],
    moving: set[Node],
) -> TokenFlow:  # fmt: skip
    """Raises: NotFree."""
    tokens, prefix = traced.tracer.shape(streams[first])[1], prefix_of(streams[first], traced, moving)
    order = {node: place for place, node in enumerate(traced.nodes)}
    begin = min(order[maker] for maker in blocks[first].heads.makers)
    entering = [row for row in rows if order[row] < begin and traced.tracer.shape(row)[1] == tokens]
    if not entering or tokens - prefix < 2:
        raise NotFree(f"{streams[first].name}: its tokens are not those that enter the block")
    known = TokenAxes(
        traced.tracer.sizes, traced.tracer.batch.size, tokens - prefix, lambda node: node not in moving,
        lambda node: traced.dims(node)[:1] == [[traced.tracer.batch]],
    )  # fmt: skip
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
        usable, attentions, prefix, tokens - prefix, prefix > 0 and known.reads_first, given, tuple(known.tables),
        tuple(known.pools),
    )  # fmt: skip


def _visit(known: TokenAxes, node: Node) -> None:
    """Raises: NotFree."""
    if node.op == "output":
        if any(known.of(source) for source in node.all_input_nodes):
            raise NotFree("the outputs have values for single tokens")
        return
    try:
        known.visit(node)
    except (AssertionError, LookupError, TypeError, ValueError) as error:  # used in a way that its rule does not know
        raise NotFree(f"{node.name}: what {node.target} does to tokens is not known") from error


def _moving(traced: Traced) -> set[Node]:
    """Nodes that differ between images; not those that only ask how many there are."""
    found = {traced.images}
    for node in traced.nodes:
        if node.target != "size" and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _rows(traced: Traced, moving: set[Node]) -> list[Node]:
    """The rows of tokens without which nothing later can be computed, in their order."""
    order = {node: place for place, node in enumerate(traced.nodes)}
    open_until, found = -1, []
    for node in traced.nodes:
        if node in moving:
            if open_until <= order[node] and _is_row_of_tokens(traced, node):  # all that was there before is used up
                found.append(node)
            open_until = max([open_until, *(order[user] for user in node.users if user in moving)])
    return found


def _streams(traced: Traced, blocks: Sequence[GraphBlock], rows: Sequence[Node]) -> dict[int, Node]:
    """Of each block the last row of tokens between its halves."""
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


def _attention(known: TokenAxes, half: Half) -> Node | None:
    """Where each token attends to each: a fused attention, or a softmax, (B, H, N, N)."""
    for mixture in half.mixtures:
        if getattr(mixture.target, "overloadpacket", None) is aten.scaled_dot_product_attention:
            q, k = mixture.args[:2]
            whole = _counts(known, q, [2]) and known.of(q) == known.of(k)
            same_heads = whole and known.shape(q)[1] == known.shape(k)[1]  # type: ignore[arg-type]
            return mixture if same_heads and known.images_first(mixture) else None
    return next((found for mixture in half.mixtures if (found := _softmax_before(known, mixture))), None)


def _counts(known: TokenAxes, node: object, places: Sequence[int]) -> bool:
    """Whether a tensor of four dims counts tokens at these places, and nowhere else."""
    return isinstance(node, Node) and len(known.shape(node)) == 4 and sorted(known.of(node)) == list(places)


def _softmax_before(known: TokenAxes, mixture: Node) -> Node | None:
    """The nearest one that a product with values reads."""
    node = mixture.args[0]
    while isinstance(node, Node) and node.op == "call_function":
        if getattr(node.target, "overloadpacket", None) in (aten.softmax, aten._softmax):
            rows_sum_to_one = node.args[1] in (-1, 3)
            return node if rows_sum_to_one and _counts(known, node, [2, 3]) and known.images_first(node) else None
        node = node.args[0]
    return None
