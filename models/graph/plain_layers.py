"""A graph that computes what a plain vision transformer does, read as one: then everything can be cut, its tokens included.

The graph says where the parts are (models/graph/tracing/sublayers.py), feeding them says what they compute (models/graph/plain_probe.py), and
the transformer that is built of that must give the outputs of the graph. What does not is no plain vision transformer and
goes by its graph alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from models.graph.plain_attention import read_attention
from models.graph.plain_probe import Affine, Norm, NotPlain, Part, activation, affine, dims_of, near, noise, norm
from models.graph.tracing.sublayers import GraphBlock, Half
from models.graph.tracing.trace import Traced

aten = torch.ops.aten
ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
MOST_PREFIX = 16
"""Class, distillation and register tokens."""
TOGETHER = 64
"""Rows that are fed at a time."""
CHECKED = 4
"""Random images on which the two must agree."""
Pooling = Literal["token", "avg", "all"]


@dataclass(frozen=True)
class PlainBlock:
    """Layer scales stand in the projection and in fc2."""

    norm1: Norm
    heads: int
    qkv: Affine
    projection: Affine
    norm2: Norm
    fc1: Affine
    activation: nn.Module
    fc2: Affine


@dataclass(frozen=True)
class Stem:
    """patch: (width, channels, height, width) of the convolution. tokens: of a black image, (tokens, width)."""

    patch: Tensor
    tokens: Tensor
    prefix: int
    norm: Norm | None


@dataclass(frozen=True)
class Tail:
    """The norm is taken before pooling or after it, or there is none. second: the head of a distillation token, the second token;
    logits are the mean of both heads'."""

    norm: Norm | None
    first: bool
    pooling: Pooling
    head: Affine | None
    second: Affine | None = None


@dataclass(frozen=True)
class Plain:
    image: tuple[int, int, int]
    stem: Stem
    blocks: tuple[PlainBlock, ...]
    tail: Tail


def read_plain(traced: Traced, blocks: Sequence[GraphBlock]) -> Plain:
    """Raises: NotPlain."""
    read, ends, before = [], [], None
    for block in blocks:
        found, first, last = _read_block(traced, block)
        if before is not None and first is not before:
            raise NotPlain("something stands between two blocks")
        before = last
        read.append(found)
        ends.append((first, last))
    stem = _read_stem(traced, ends[0][0])
    return Plain(traced.image, stem, tuple(read), _read_tail(traced, ends[-1][1], stem.prefix))


def _read_block(traced: Traced, block: GraphBlock) -> tuple[PlainBlock, Node, Node]:
    """Also its tokens before and after."""
    x, update, middle = _added(traced, block.heads.reader)
    entered, mlp_update, after = _added(traced, block.neurons.reader)
    shape = dims_of(traced, x)
    if entered is not middle or len(shape) != 2 or len(block.neurons.makers) != 1:
        raise NotPlain("its halves do not follow each other, or its MLP is gated")
    tokens, width = shape
    seen, normed = _input(block.heads, traced), _input(block.neurons, traced)
    qkv, heads, projection = read_attention(traced, block.heads, seen, update, tokens, width)
    maker, active = block.neurons.makers[0], _activations(block.neurons.reader, traced)
    neurons = block.neurons.atom.size
    return (
        PlainBlock(
            norm(Part(traced, x, seen), shape), heads, qkv, projection,
            norm(Part(traced, middle, normed), shape),
            affine(Part(traced, normed, maker), width, tokens),
            activation(Part(traced, maker, active), dims_of(traced, maker)),
            affine(Part(traced, active, mlp_update), neurons, tokens),
        ), x, after,
    )  # fmt: skip


def _added(traced: Traced, reader: Node) -> tuple[Node, Node, Node]:
    """Where what a half makes joins the tokens: (tokens before, what is added, tokens after)."""
    node = reader
    while len(node.users) == 1:
        (user,) = node.users
        activations = [one for one in user.all_input_nodes if one not in traced.tracer.weights]
        if user.target in ADDITIONS and len(activations) == 2 and user.kwargs.get("alpha", 1) == 1:
            (other,) = (one for one in activations if one is not node)
            if traced.tracer.shape(other) == traced.tracer.shape(user):
                return other, node, user
        node = user
    raise NotPlain("what a half makes goes to several places")


def _input(half: Half, traced: Traced) -> Node:
    """What the makers of a half see."""
    seen = {_activations(maker, traced) for maker in half.makers}
    if len(seen) != 1:
        raise NotPlain("the layers of a half see different inputs")
    return seen.pop()


def _activations(product: Node, traced: Traced) -> Node:
    found = [node for node in product.all_input_nodes if node not in traced.tracer.weights]
    if len(found) != 1:
        raise NotPlain("a product of several activations")
    return found[0]


def _read_stem(traced: Traced, x: Node) -> Stem:
    shape = dims_of(traced, x)
    found, start = None, x
    for node in _before(x):
        if traced.tracer.sizes.get(node) == traced.tracer.shape(x) and node is not x:
            found = _norm_or_none(traced, node, x, shape)
            if found is not None:
                start = node
                break
    part, tokens = Part(traced, traced.images, start), shape[0]
    base = part(torch.zeros(1, *traced.image))[0]
    images_of_noise = noise(2, *traced.image)
    for prefix, side in _grids(tokens, traced.image):
        patch = _patch(part, traced.image, side, base, prefix)
        made = functional.conv2d(images_of_noise, patch, stride=side).flatten(2).transpose(1, 2)
        if near(part(images_of_noise) - base, functional.pad(made, (0, 0, prefix, 0))):
            return Stem(patch, base, prefix, found)
    raise NotPlain("tokens that are no grid of patches")


def _before(node: Node, most: int = 24) -> Iterator[Node]:
    """What a node depends on, nearest first."""
    waiting, seen = [node], {node}
    while waiting and len(seen) < most:
        node = waiting.pop(0)
        yield node
        new = [one for one in node.all_input_nodes if one not in seen]
        seen.update(new)
        waiting += new


def _norm_or_none(traced: Traced, source: Node, target: Node, shape: tuple[int, ...]) -> Norm | None:
    try:
        return norm(Part(traced, source, target), shape)
    except (NotPlain, RuntimeError):  # parts of other shapes fail wherever they do
        return None


def _grids(tokens: int, image: tuple[int, int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """How many tokens may stand before the patches, and the height and width of a patch; square ones first."""
    _, height, width = image
    sides = [(h, w) for h in range(1, height + 1) if not height % h for w in range(1, width + 1) if not width % w]
    for prefix in range(min(MOST_PREFIX, tokens - 1) + 1):
        for high, wide in sorted(sides, key=lambda side: (side[0] != side[1], side)):
            if height // high * (width // wide) == tokens - prefix:
                yield prefix, (high, wide)


def _patch(part: Part, image: tuple[int, int, int], side: tuple[int, int], base: Tensor, prefix: int) -> Tensor:
    """The convolution: one pixel of one patch at a time, many patches in one image."""
    (channels, height, width), (high, wide) = image, side
    columns, count = width // wide, (height // high) * (width // wide)
    pixels = channels * high * wide
    images = torch.zeros(-(-pixels // count), channels, height, width)
    order = torch.arange(pixels)
    picture, place = order // count, order % count
    channel, row, column = order // (high * wide), order // wide % high, order % wide
    images[picture, channel, place // columns * high + row, place % columns * wide + column] = 1.0
    found = part(images) - base
    return found[picture, prefix + place].T.reshape(-1, channels, high, wide).contiguous()


def _read_tail(traced: Traced, x: Node, prefix: int) -> Tail:
    """The norm and pooling in either order, then a linear layer or nothing."""
    shape = dims_of(traced, x)
    (output,) = (node.args[0] for node in traced.nodes if node.op == "output")
    output = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(output, Node)
    later = [(node, _dims_or_none(traced, node)) for node in _after(traced, x)]
    whole = _last_norm(traced, x, [node for node, dims in later if dims == shape], shape)
    start = x if whole is None else whole[1]
    heads = _two_heads(Part(traced, start, output), shape) if whole and prefix == 2 else None
    if whole and heads:
        return Tail(whole[0], True, "token", *heads)
    flat = [node for node, dims in later if dims == shape[1:]]
    pooling, pooled = _pooled(traced, start, flat, prefix)
    after = None if whole else _last_norm(traced, pooled, [n for n in flat if n is not pooled], shape[1:])
    end = pooled if after is None else after[1]
    head = None
    if end is not output:
        head = affine(Part(traced, end, output), shape[1], 1, lambda rows: rows[:, 0])
    found = whole or after
    return Tail(None if found is None else found[0], whole is not None, pooling, head)


def _two_heads(part: Part, shape: tuple[int, ...]) -> tuple[Affine, Affine] | None:
    """Of a class token and a distillation token; None where the second token does not reach the logits."""
    width = shape[1]
    bias = part(torch.zeros(1, *shape))[0]
    weights = []
    for token in range(2):
        rows = []
        for some in torch.eye(width).split(TOGETHER):
            tokens = torch.zeros(len(some), *shape)
            tokens[:, token] = some
            rows.append(part(tokens) - bias)
        weights.append(torch.cat(rows).T.contiguous())
    patches = noise(1, *shape)
    patches[:, :2] = 0
    if not weights[1].any() or not near(part(patches)[0], bias):
        return None
    return Affine(2 * weights[0], 2 * bias), Affine(2 * weights[1], torch.zeros_like(bias))


def _after(traced: Traced, x: Node) -> list[Node]:
    """What depends on a node, in order."""
    reached: list[Node] = []
    known = {x}
    for node in traced.nodes:
        if any(one in known for one in node.all_input_nodes):
            known.add(node)
            reached.append(node)
    return reached


def _dims_or_none(traced: Traced, node: Node) -> tuple[int, ...] | None:
    try:
        return dims_of(traced, node) if isinstance(traced.tracer.sizes.get(node), tuple) else None
    except (NotPlain, ValueError):
        return None


def _last_norm(traced: Traced, x: Node, nodes: Sequence[Node], shape: tuple[int, ...]) -> tuple[Norm, Node] | None:
    """Written in single operators a norm without its weights is one too, so the last node counts."""
    last = None
    for node in nodes:
        found = _norm_or_none(traced, x, node, shape)
        last = last if found is None else (found, node)
    return last


def _pooled(traced: Traced, x: Node, nodes: Sequence[Node], prefix: int) -> tuple[Pooling, Node]:
    shape = dims_of(traced, x)
    tokens = noise(3, *shape)
    wanted: dict[Pooling, Tensor] = {
        "avg": tokens[:, prefix:].mean(1), "all": tokens.mean(1), "token": tokens[:, 0],
    }  # fmt: skip
    if not prefix:
        del wanted["all"], wanted["token"]
    for node in nodes:
        try:
            found = Part(traced, x, node)(tokens)
        except (NotPlain, RuntimeError):
            continue
        for pooling, value in wanted.items():
            if near(found, value):
                return pooling, node
    raise NotPlain("pooling that is not known")


def agrees(traced: Traced, module: nn.Module) -> bool:
    """Whether a module gives what the graph gives, on random images."""
    images = noise(CHECKED, *traced.image)
    with torch.inference_mode():
        return near(module.eval()(images), traced.graph(images))
