"""Reads a graph as a plain vision transformer, if it computes the same. Then everything can be cut, tokens included.

The graph shows where the parts are (models/graph/tracing/sublayers.py). Running the parts on chosen inputs shows what
they compute (models/graph/plain_probe.py). The transformer that is built from them must give the same outputs as the
graph. A model that fails this check is not a plain vision transformer, and is pruned by its graph only.
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
"""Largest number of class, distillation and register tokens."""
TOGETHER = 64
"""Number of rows in one forward pass of a part."""
CHECKED = 4
"""Number of random images on which the graph and the transformer built from it must agree."""
Pooling = Literal["token", "avg", "all"]


@dataclass(frozen=True)
class PlainBlock:
    """The layers of one block. Layer scales are folded into the projection and into fc2."""

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
    """The layers before the first block.

    patch: weight of the convolution, (embedding width, channels, patch height, patch width).
    tokens: the tokens of a black image, (tokens, embedding width).
    prefix: number of tokens before the patches.
    """

    patch: Tensor
    tokens: Tensor
    prefix: int
    norm: Norm | None


@dataclass(frozen=True)
class Tail:
    """The layers after the last block.

    norm: None if there is no norm.
    first: whether the norm comes before the pooling.
    second: the head of the distillation token, which is the second token. The logits are the mean of both heads.
    """

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
    """Read all layers of a plain vision transformer. Raises: NotPlain."""
    read, ends, before = [], [], None
    for block in blocks:
        found, first, last = _read_block(traced, block)
        if before is not None and first is not before:
            raise NotPlain("there is an operator between two blocks")
        before = last
        read.append(found)
        ends.append((first, last))
    stem = _read_stem(traced, ends[0][0])
    return Plain(traced.image, stem, tuple(read), _read_tail(traced, ends[-1][1], stem.prefix))


def _read_block(traced: Traced, block: GraphBlock) -> tuple[PlainBlock, Node, Node]:
    """Return the layers of a block, and the nodes of its tokens before and after it."""
    x, update, middle = _added(traced, block.heads.reader)
    entered, mlp_update, after = _added(traced, block.neurons.reader)
    shape = dims_of(traced, x)
    if entered is not middle or len(shape) != 2 or len(block.neurons.makers) != 1:
        raise NotPlain("the MLP of a block does not follow its attention directly, or it is gated")
    tokens, width = shape
    seen, normed = _input(block.heads, traced), _input(block.neurons, traced)
    qkv, heads, projection = read_attention(traced, block.heads, seen, update, tokens=tokens, width=width)
    maker, active = block.neurons.makers[0], _activations(block.neurons.reader, traced)
    neurons = block.neurons.atom.size
    return (
        PlainBlock(
            norm(Part(traced, x, seen), shape),
            heads,
            qkv,
            projection,
            norm(Part(traced, middle, normed), shape),
            affine(Part(traced, normed, maker), width, tokens),
            activation(Part(traced, maker, active), dims_of(traced, maker)),
            affine(Part(traced, active, mlp_update), neurons, tokens),
        ),
        x,
        after,
    )


def _added(traced: Traced, reader: Node) -> tuple[Node, Node, Node]:
    """Find where the output of a sublayer is added to the residual stream.

    Return (tokens before the addition, the added tensor, tokens after it).
    """
    node = reader
    while len(node.users) == 1:
        (user,) = node.users
        activations = [one for one in user.all_input_nodes if one not in traced.tracer.weights]
        if user.target in ADDITIONS and len(activations) == 2 and user.kwargs.get("alpha", 1) == 1:
            (other,) = (one for one in activations if one is not node)
            if traced.tracer.shape(other) == traced.tracer.shape(user):
                return other, node, user
        node = user
    raise NotPlain("several operators read the output of a sublayer")


def _input(half: Half, traced: Traced) -> Node:
    """Return the node that all makers of a sublayer read."""
    seen = {_activations(maker, traced) for maker in half.makers}
    if len(seen) != 1:
        raise NotPlain("the layers of a sublayer read different inputs")
    return seen.pop()


def _activations(product: Node, traced: Traced) -> Node:
    found = [node for node in product.all_input_nodes if node not in traced.tracer.weights]
    if len(found) != 1:
        raise NotPlain("a product multiplies several activations")
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
        patch = _patch(part, traced.image, side, base, prefix=prefix)
        made = functional.conv2d(images_of_noise, patch, stride=side).flatten(2).transpose(1, 2)
        if near(part(images_of_noise) - base, functional.pad(made, (0, 0, prefix, 0))):
            return Stem(patch, base, prefix, found)
    raise NotPlain("the tokens are not a grid of patches")


def _before(node: Node, most: int = 24) -> Iterator[Node]:
    """Yield a node and the nodes that it depends on, the nearest first. Stops when `most` nodes have been seen."""
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
    except (NotPlain, RuntimeError):  # a part that expects other shapes can fail in any of its operators
        return None


def _grids(tokens: int, image: tuple[int, int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield each possible number of tokens before the patches, with the height and width of a patch in pixels.

    Square patches come first.
    """
    _, height, width = image
    sides = [(h, w) for h in range(1, height + 1) if not height % h for w in range(1, width + 1) if not width % w]
    for prefix in range(min(MOST_PREFIX, tokens - 1) + 1):
        for high, wide in sorted(sides, key=lambda side: (side[0] != side[1], side)):
            if height // high * (width // wide) == tokens - prefix:
                yield prefix, (high, wide)


def _patch(part: Part, image: tuple[int, int, int], side: tuple[int, int], base: Tensor, *, prefix: int) -> Tensor:
    """Return the weight of the convolution.

    Each probe sets one pixel of one patch to 1. One image holds as many probes as it has patches.
    """
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
    """Read the norm and the pooling, in either order, then a linear layer if there is one."""
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
    """Return the heads of a class token and a distillation token.

    Return None if the second token does not reach the logits, or if the patches do.
    """
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
    """Return the nodes that depend on a node, in the order of the graph."""
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
    """Return the last of `nodes` that is a norm of `x`, with that node.

    A file may write a norm as single operators. Then the normalised value before its weights are applied looks like a
    norm too, so only the last node is the complete norm.
    """
    last = None
    for node in nodes:
        found = _norm_or_none(traced, x, node, shape)
        last = last if found is None else (found, node)
    return last


def _pooled(traced: Traced, x: Node, nodes: Sequence[Node], prefix: int) -> tuple[Pooling, Node]:
    shape = dims_of(traced, x)
    tokens = noise(3, *shape)
    wanted: dict[Pooling, Tensor] = {
        "avg": tokens[:, prefix:].mean(1),
        "all": tokens.mean(1),
        "token": tokens[:, 0],
    }
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
    raise NotPlain("the pooling is unknown")


def agrees(traced: Traced, module: nn.Module) -> bool:
    """Return whether a module and the graph give the same outputs on random images."""
    images = noise(CHECKED, *traced.image)
    with torch.inference_mode():
        return near(module.eval()(images), traced.graph(images))
