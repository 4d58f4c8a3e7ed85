"""Rules for what each operator does to the axes that count tokens.

An operator without a rule raises `NotFree` (models/graph/tokens/axes.py).
"""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.fx import Node

from models.graph.tokens.axes import Axes, NotFree, Pool, Table, TokenAxes, TokenAxis, token_rule
from models.graph.tracing.layout import RESHAPES
from models.graph.tracing.tracer import argument, pointwise

aten = torch.ops.aten


@token_rule(pointwise)
def _pointwise(known: TokenAxes, node: Node) -> Axes:
    return known.broadcast(node, [source for source in node.all_input_nodes if known.shape(source)])


@token_rule(
    aten.dropout,
    aten.contiguous,
    aten.clone,
    aten.to,
    aten.type_as,
    aten.alias,
    aten.detach,
    aten._to_copy,
    aten.dropout_,
    aten.lift_fresh_copy,
    aten.feature_dropout,
)
def _same(known: TokenAxes, node: Node) -> Axes:
    return dict(known.of(node.args[0]))


@token_rule(aten.linear)
def _linear(known: TokenAxes, node: Node) -> Axes:
    return _untouched(known, node, [-1])


@token_rule(aten.addmm)
def _addmm(known: TokenAxes, node: Node) -> Axes:
    """The arguments of `addmm` are bias, inputs and weight, in this order."""
    axes = known.of(node.args[1])
    if any(known.of(one) for one in (node.args[0], node.args[2])) or 1 in axes:
        raise NotFree(f"{node.name}: has weights for single tokens, or mixes tokens")
    return dict(axes)


@token_rule(aten.layer_norm, aten.rms_norm)
def _layer_norm(known: TokenAxes, node: Node) -> Axes:
    return _untouched(known, node, range(-len(node.args[1]), 0))  # type: ignore[arg-type]


@token_rule(aten.batch_norm, aten._native_batch_norm_legit_no_training)
def _batch_norm(known: TokenAxes, node: Node) -> Axes:
    return _untouched(known, node, [1])


@token_rule(aten.softmax, aten._softmax, aten.log_softmax)
def _softmax(known: TokenAxes, node: Node) -> Axes:
    return dict(known.of(node.args[0]))


def _untouched(known: TokenAxes, node: Node, places: Sequence[int]) -> Axes:
    """Return the token axes after an operator that mixes the values along these dims, or has weights for them.

    Raises: NotFree when one of these dims counts tokens.
    """
    axes, rank = known.of(node.args[0]), len(known.shape(node.args[0]))  # type: ignore[arg-type]
    if any(place % rank in axes for place in places):
        raise NotFree(f"{node.name}: has weights for single tokens, or mixes tokens")
    return dict(axes)


@token_rule(aten.matmul, aten.bmm, aten.mm)
def _matmul(known: TokenAxes, node: Node) -> Axes:
    a, b = node.args[:2]
    assert isinstance(a, Node) and isinstance(b, Node)
    rank = len(known.shape(node))
    if known.at(a, -1) != known.at(b, -2):
        raise NotFree(f"{node.name}: sums over tokens with weights for single ones")
    found: Axes = {}
    if any(known.at(source, place) for source in (a, b) for place in range(-rank, -2)):
        raise NotFree(
            f"{node.name}: computes a separate product for each token"
        )  # windows, or separate tokens for each token
    for source, place in ((a, -2), (b, -1)):
        if axis := known.at(source, place):
            found[rank + place] = axis
    return found


@token_rule(aten.scaled_dot_product_attention)
def _attention(known: TokenAxes, node: Node) -> Axes:
    q, k, v = node.args[:3]
    assert isinstance(q, Node) and isinstance(k, Node) and isinstance(v, Node)
    queries, keys = known.at(q, -2), known.at(k, -2)
    if keys != known.at(v, -2) or any(known.at(one, place) for one in (q, k, v) for place in (-1, -3, -4)):
        raise NotFree(f"{node.name}: keys and values belong to different tokens")
    if argument(node, 5, "is_causal"):
        raise NotFree(f"{node.name}: tokens have an order")
    mask = argument(node, 3, "attn_mask")
    if mask is not None:
        _mask(known, node, mask, {-2: queries, -1: keys})
    return {len(known.shape(q)) - 2: queries} if queries else {}


def _mask(known: TokenAxes, node: Node, mask: Node, wanted: dict[int, TokenAxis | None]) -> None:
    """Record an attention mask as a table if it has values for single tokens. Raises: NotFree.

    wanted: the token axis that the mask must have at each of its last two dims.
    """
    shape, places = known.shape(mask), []
    for place, axis in wanted.items():
        if known.at(mask, place) != axis and shape[place] != 1:
            if known.at(mask, place) or not known.still(mask):
                raise NotFree(f"{node.name}: its mask belongs to other tokens")
            places.append(place)
    if places:
        axes = {axis for place in places if (axis := wanted[place])}
        if len(axes) != 1:
            raise NotFree(f"{node.name}: its mask belongs to other tokens")
        known.read(Table(node, mask, tuple(places), axes.pop()))


@token_rule(*RESHAPES)
def _reshape(known: TokenAxes, node: Node) -> Axes:
    """Find each token axis after a reshape.

    It is a dim of the same length, for which the product of all earlier dims is also the same. The token axis of each
    image may merge with the batch into one dim, and may be separated again. Raises: NotFree.
    """
    before, after = known.shape(node.args[0]), known.shape(node)  # type: ignore[arg-type]
    starts = {(_slower(after, place), size): place for place, size in enumerate(after) if size != 1}
    found: Axes = {}
    for place, axis in known.of(node.args[0]).items():
        start, length = _slower(before, place), before[place]
        now = starts.get((start, length))
        if now is None and axis.of_all:
            now, axis = starts.get((known.batch, length // known.batch)), dataclasses.replace(axis, of_all=False)
        elif now is None and start == known.batch:
            now, axis = starts.get((1, known.batch * length)), dataclasses.replace(axis, of_all=True)
        if now is None:
            raise NotFree(f"{node.name}: lays tokens out as {list(after)}")
        found[now] = axis
    return found


def _slower(shape: Sequence[int], place: int) -> int:
    found = 1
    for size in shape[:place]:
        found *= size
    return found


@token_rule(aten.permute)
def _permute(known: TokenAxes, node: Node) -> Axes:
    axes, order = known.of(node.args[0]), argument(node, 1, "dims")
    rank = len(order)
    return {now: axes[old % rank] for now, old in enumerate(order) if old % rank in axes}


@token_rule(aten.transpose, aten.swapaxes, aten.transpose_)
def _transpose(known: TokenAxes, node: Node) -> Axes:
    rank = len(known.shape(node))
    a, b = (int(place) % rank for place in node.args[1:3])  # type: ignore[arg-type]
    return {{a: b, b: a}.get(place, place): axis for place, axis in known.of(node.args[0]).items()}


@token_rule(aten.t, aten.numpy_T, aten.mT)
def _turned(known: TokenAxes, node: Node) -> Axes:
    rank = len(known.shape(node))
    swapped = {rank - 1: rank - 2, rank - 2: rank - 1}
    return {swapped.get(place, place): axis for place, axis in known.of(node.args[0]).items()}


@token_rule(aten.expand, aten.expand_as, aten.broadcast_to)
def _expand(known: TokenAxes, node: Node) -> Axes:
    source = node.args[0]
    more = len(known.shape(node)) - len(known.shape(source))  # type: ignore[arg-type]
    return {place + more: axis for place, axis in known.of(source).items()}


@token_rule(aten.select)
def _select(known: TokenAxes, node: Node) -> Axes:
    axes, rank = known.of(node.args[0]), len(known.shape(node.args[0]))  # type: ignore[arg-type]
    place, index = argument(node, 1, "dim", 0) % rank, argument(node, 2, "index")
    if place in axes:
        if not 0 <= index < axes[place].before or axes[place].of_all:
            raise NotFree(f"{node.name}: reads one token by its place")
        known.reads_first |= index == 0 and rank == 3
    return {old - (old > place): axis for old, axis in axes.items() if old != place}


@token_rule(aten.slice)
def _slice(known: TokenAxes, node: Node) -> Axes:
    axes, shape = dict(known.of(node.args[0])), known.shape(node.args[0])  # type: ignore[arg-type]
    _, place, start, _, step = cast(Any, node.args)
    if place not in axes:
        return axes
    length = known.shape(node)[place]
    if step != 1:
        raise NotFree(f"{node.name}: takes tokens by their places")
    axis = axes.pop(place)
    rest = _run(known, node, axis, start, length=length)
    known.reads_first |= rest is None and start == 0 and length == 1 and len(shape) == 3
    return axes | ({place: rest} if rest else {})


def _run(known: TokenAxes, node: Node, axis: TokenAxis, start: int, *, length: int) -> TokenAxis | None:
    """Return the token axis of a run of adjacent tokens: None if the run has no patches.

    Raises: NotFree when the run has some of the patches, but not all.
    """
    if axis.of_all:
        raise NotFree(f"{node.name}: takes images one by one")
    if start + length <= axis.before:
        return None
    if start <= axis.before and start + length == known.length(axis):
        return TokenAxis(axis.before - start, axis.block)
    raise NotFree(f"{node.name}: takes tokens by their places")


@token_rule(aten.split, aten.chunk, aten.split_with_sizes, aten.tensor_split)
def _split(known: TokenAxes, node: Node) -> list[Axes]:
    axes, shape = known.of(node.args[0]), known.shape(node.args[0])  # type: ignore[arg-type]
    place, start = argument(node, 2, "dim", 0) % len(shape), 0
    found: list[Axes] = []
    if place in axes and getattr(node.target, "overloadpacket", None) is not aten.split_with_sizes:
        raise NotFree(f"{node.name}: takes tokens by their places")
    for part in known.sizes[node]:
        own = dict(axes)
        if place in own:
            rest = _run(known, node, own.pop(place), start, length=part[place])
            own |= {place: rest} if rest else {}
            used = any(user.args[1] == len(found) for user in node.users)
            known.reads_first |= used and not rest and start == 0 and part[place] == 1 and len(shape) == 3
        start += part[place]
        found.append(own)
    return found


@token_rule(aten.unbind)
def _unbind(known: TokenAxes, node: Node) -> list[Axes]:
    axes, rank = known.of(node.args[0]), len(known.shape(node.args[0]))  # type: ignore[arg-type]
    place = argument(node, 1, "dim", 0) % rank
    if place in axes:
        raise NotFree(f"{node.name}: takes tokens one by one")
    one = {old - (old > place): axis for old, axis in axes.items()}
    return [one for _ in known.sizes[node]]


@token_rule(operator.getitem)
def _getitem(known: TokenAxes, node: Node) -> Axes:
    several = known.of(node.args[0])
    return dict(several[node.args[1]]) if several else {}


@token_rule(aten.cat, aten.concat)
def _cat(known: TokenAxes, node: Node) -> Axes:
    """Trace a concatenation. Along tokens, the patches must come last, behind tokens that are never removed.

    Along any other dim, all inputs must have the same token axes.
    """
    sources = [one for one in node.args[0] if 0 not in known.shape(one)]  # type: ignore[union-attr, arg-type]
    assert all(isinstance(one, Node) for one in sources)
    place = argument(node, 1, "dim", 0) % len(known.shape(node))
    joined = [known.of(one).get(place) for one in sources]
    others = [{p: axis for p, axis in known.of(one).items() if p != place} for one in sources]
    if any(other != others[0] for other in others):
        raise NotFree(f"{node.name}: combines tokens with values that may not belong to tokens")
    found = dict(others[0])
    if any(joined):
        if sum(map(bool, joined)) > 1 or not joined[-1] or joined[-1].of_all:
            raise NotFree(f"{node.name}: adds entries after the tokens")
        ahead = sum(known.shape(one)[place] for one in sources[:-1])  # type: ignore[arg-type]
        found[place] = TokenAxis(joined[-1].before + ahead, joined[-1].block)
    return found


@token_rule(aten.stack)
def _stack(known: TokenAxes, node: Node) -> Axes:
    sources = list(node.args[0])  # type: ignore[arg-type]
    axes = known.of(sources[0])
    if any(known.of(one) != axes for one in sources):
        raise NotFree(f"{node.name}: combines tokens with values that may not belong to tokens")
    place = argument(node, 1, "dim", 0) % len(known.shape(node))
    return {old + (old >= place): axis for old, axis in axes.items()}


@token_rule(aten.mean, aten.sum, aten.amax, aten.amin, aten.linalg_vector_norm, aten.std, aten.var, aten.norm)
def _reduce(known: TokenAxes, node: Node) -> Axes:
    source = node.args[0]
    axes, shape, wanted = known.of(source), known.shape(source), known.shape(node)  # type: ignore[arg-type]
    packet = getattr(node.target, "overloadpacket", None)
    which = argument(node, 2 if packet in (aten.linalg_vector_norm, aten.norm) else 1, "dim")
    which = range(len(shape)) if which is None else [which] if isinstance(which, int) else which
    gone = sorted(place % len(shape) for place in which)
    for place in gone:
        if place in axes:
            if packet not in (aten.mean, aten.amax, aten.amin) or axes[place].of_all:
                raise NotFree(f"{node.name}: a sum or a norm over tokens, which depends on their number")
            if packet is aten.mean:
                known.pools.append(Pool(node, place, axes[place]))
    left = {place: axis for place, axis in axes.items() if place not in gone}
    if len(wanted) == len(shape):
        return left
    return {place - sum(one < place for one in gone): axis for place, axis in left.items()}


@token_rule(aten.repeat)
def _repeat(known: TokenAxes, node: Node) -> Axes:
    source = node.args[0]
    axes, before, after = known.of(source), known.shape(source), known.shape(node)  # type: ignore[arg-type]
    more = len(after) - len(before)
    if any(after[place + more] != before[place] for place in axes):
        raise NotFree(f"{node.name}: repeats tokens")
    return {place + more: axis for place, axis in axes.items()}
