"""Reads the queries, keys, values and projection of one attention in a graph by running its parts on chosen inputs
(models/graph/plain_probe.py)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from models.graph.plain_probe import Affine, NotPlain, Part, affine, dims_of, noise
from models.graph.tracing.sublayers import Half
from models.graph.tracing.trace import Traced

aten = torch.ops.aten
SOFTMAX = (aten.softmax, aten._softmax)


@dataclass(frozen=True)
class _Found:
    """The nodes of one attention.

    q, v: (B, H, N, d).
    k: (B, H, N, d), or (B, H, d, N) if `turned`.
    context: the output of the attention before the projection.
    scale: the factor of the logits.
    """

    q: Node
    k: Node
    v: Node
    context: Node
    turned: bool
    scale: float


def read_attention(
    traced: Traced, half: Half, seen: Node, update: Node, *, tokens: int, width: int
) -> tuple[Affine, int, Affine]:
    """Read one attention.

    seen: the node of the normed tokens.
    update: the node that is added to the residual stream.
    Return q, k and v as one layer, in that order and for logits that are scaled by 1 / sqrt(dim); the number of
    heads; the projection. Raises: NotPlain.
    """
    found = _find(traced, half)
    heads, dim = half.atom.size, width // half.atom.size
    if dims_of(traced, found.context) != (heads, tokens, dim):
        raise NotPlain("the dims of all heads together are not the embedding width")
    parts = []
    for node, turned in ((found.q, False), (found.k, found.turned), (found.v, False)):
        wanted = (heads, dim, tokens) if turned else (heads, tokens, dim)
        if dims_of(traced, node) != wanted:
            raise NotPlain("queries, keys and values have different shapes")
        order = (0, 3, 1, 2) if turned else (0, 2, 1, 3)
        part = Part(traced, seen, node)
        parts.append(affine(part, width, tokens, read=lambda y, order=order: y.permute(order).flatten(2)))  # type: ignore[misc]
    q, k, v = parts
    other = _scale(traced, half, found.k)
    q, k = q.scaled(found.scale * other * math.sqrt(dim)), k.scaled(1 / other)
    joined = Affine(torch.cat([q.weight, k.weight, v.weight]), torch.cat([q.bias, k.bias, v.bias]))
    projection = affine(
        Part(traced, found.context, update),
        width,
        tokens,
        lambda rows: rows.view(len(rows), tokens, heads, dim).transpose(1, 2).contiguous(),
    )
    return joined, heads, projection


def _find(traced: Traced, half: Half) -> _Found:
    if len(half.mixtures) == 1:
        node = half.mixtures[0]
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if node.target != aten.scaled_dot_product_attention.default or not _sees_all(traced, mask):
            raise NotPlain("an attention has a mask")
        if (len(node.args) > 5 and node.args[5]) or node.kwargs.get("is_causal"):
            raise NotPlain("an attention is causal")
        q, k, v = node.args[:3]
        assert isinstance(q, Node) and isinstance(k, Node) and isinstance(v, Node)
        return _Found(q, k, v, node, False, float(node.kwargs["scale"]))  # type: ignore[arg-type]
    if len(half.mixtures) != 2:
        raise NotPlain(f"an attention has {len(half.mixtures)} products")
    logits, context = half.mixtures
    (q, k), (weights, v) = logits.args[:2], context.args[:2]
    assert isinstance(q, Node) and isinstance(k, Node) and isinstance(weights, Node) and isinstance(v, Node)
    node = weights
    while getattr(node.target, "overloadpacket", None) not in SOFTMAX:
        if (guarded := _guarded(node)) is not None:
            node = guarded
            continue
        if len(node.all_input_nodes) != 1:
            raise NotPlain("an operator changes the softmax of an attention")
        (node,) = node.all_input_nodes
    scale = _factor(Part(traced, logits, node.all_input_nodes[0]), dims_of(traced, logits))
    return _Found(q, k, v, context, True, scale)


def _guarded(node: Node) -> Node | None:
    """Return x if a node computes `where(isnan(x), 0, x)`, otherwise None.

    torch's newer exporter writes this behind each softmax, for rows in which a mask hides everything. Without a mask
    there are no such rows.
    """
    if node.target != aten.where.self:
        return None
    condition, _, value = node.args
    is_guard = isinstance(condition, Node) and condition.target == aten.isnan.default and condition.args[0] is value
    return value if is_guard and isinstance(value, Node) else None


def _sees_all(traced: Traced, mask: object) -> bool:
    """Return whether a mask hides nothing. Some libraries write such masks into a graph."""
    if not isinstance(mask, Node):
        return mask is None
    found = Part(traced, traced.images, mask)(noise(2, *traced.image))
    return bool(found.all()) if found.dtype == torch.bool else not bool(found.any())


def _scale(traced: Traced, half: Half, node: Node) -> float:
    """Return the factor by which q or k is multiplied after its layer; 1 if it is not a single number."""
    for maker in half.makers:
        try:
            return _factor(Part(traced, maker, node), dims_of(traced, maker))
        except (NotPlain, RuntimeError):
            continue
    return 1.0


def _factor(part: Part, shape: tuple[int, ...]) -> float:
    """Return the number by which a part multiplies all its values. Raises: NotPlain when it does anything else."""
    values = part(torch.stack([torch.zeros(shape), torch.ones(shape)]))
    if bool(values[0].any()) or not _one_number(values[1]):
        raise NotPlain("an operator changes the logits by more than a scale")
    return float(values[1].flatten()[0])


def _one_number(values: Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())
