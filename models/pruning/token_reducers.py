"""Token reducers as pure functions. N tokens = P prefix + M patches + (0 or 1) package; D width; all sizes static.

Only sort, gather, sums and concatenation: every ONNX runtime has them, and no scatter is needed.
"""

import torch
from torch import Tensor
from torch.nn import functional

LEAST_SHARE = 1e-4
"""Of the mean weight: what a token counts at least in a weighted package, so that there is always something to divide by."""


def class_attention(attention: Tensor, prefix: int) -> Tensor:
    """Score of each token after the prefix: the class token's attention to it, mean over heads (MDC, section 3.3).

    attention: (B, H, N, N) after softmax. Returns (B, N - P).
    """
    return attention[:, :, 0, prefix:].mean(dim=1)


def received_attention(attention: Tensor, prefix: int) -> Tensor:
    """Without a class token: the attention that a token receives, mean over heads and queries. (B, N - P)."""
    return attention[:, :, :, prefix:].mean(dim=(1, 2))


def strongest_attention(attention: Tensor, prefix: int) -> Tensor:
    """CP-ViT's score of one layer: sum over heads of the strongest attention that any query pays to the token.
    (B, N - P)."""
    return attention[:, :, :, prefix:].amax(dim=2).sum(dim=1)


def best_tokens(scores: Tensor, kept: int) -> Tensor:
    """Indices of the `kept` highest scores, best first; ties go to the lower index. scores (B, M) -> (B, kept).

    torch.topk leaves ties open, ONNX's TopK gives them to the lower index and has no other name for a stable sort.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.topk(scores, kept, dim=1).indices
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :kept]


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """x (B, M, D), index (B, K) -> (B, K, D).

    Whole rows of the flattened tokens are looked up: ONNX's Gather copies rows, GatherElements goes value by value.
    """
    batch, tokens, width = x.shape
    first = torch.arange(batch, device=x.device).unsqueeze(1) * tokens
    return functional.embedding(index + first, x.reshape(batch * tokens, width))


def membership(index: Tensor, size: int) -> Tensor:
    """index (B, K) below `size` -> bool (B, size): which are in it. By comparison: no scatter."""
    return (index.unsqueeze(2) == torch.arange(size, device=index.device)).any(dim=1)


def drop(x: Tensor, index: Tensor, prefix: int, patches: int) -> Tensor:
    """Prefix, the indexed patch tokens, and a package if there was one. x (B, N, D) -> (B, P + K [+ 1], D)."""
    kept = gather_tokens(x[:, prefix : prefix + patches], index)
    return torch.cat([x[:, :prefix], kept, x[:, prefix + patches :]], dim=1)


def fuse(
    x: Tensor, index: Tensor, prefix: int, patches: int, packaged: int, weights: Tensor | None = None
) -> Tensor:  # fmt: skip
    """As `drop`, but the removed tokens leave as one package token: their mean (MDC), or their mean by `weights` (B, M),
    at least 0 (SPViT); merged with an earlier package as in HeatViT, so that there is never more than one.

    `packaged`: how many tokens the package at the end of x already stands for, 0 when there is none; beside weights of
    mean 1 over the patches it counts so much. The removed are never gathered: without weights their sum is the sum of all
    less the sum of the kept; with weights, which are small just for the removed, that difference would be rounding.
    """
    body = x[:, prefix : prefix + patches]
    kept = gather_tokens(body, index)
    if weights is None:
        total = body.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)
        count: Tensor | float = float(patches - index.shape[1])
    else:
        share = (weights / weights.mean(dim=1, keepdim=True).clamp(min=1e-12)).clamp(min=LEAST_SHARE)
        gone = (share * (1 - membership(index, patches).to(share.dtype))).unsqueeze(-1)
        total = (gone * body).sum(dim=1, keepdim=True)
        count = gone.sum(dim=1, keepdim=True)
    if packaged:
        total = total + x[:, prefix + patches :] * packaged
        count = count + packaged
    return torch.cat([x[:, :prefix], kept, total / count], dim=1)


def merge(x: Tensor, keys: Tensor, sizes: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Merges the most similar tokens until `kept` are left (ToMe, arXiv 2210.09461, section 3: bipartite matching).

    x (B, M, D); keys (B, M, q), whose cosine is the similarity; sizes (1 or B, M). Returns (B, kept, D) and (B, kept):
    means weighted by size, and the new sizes. A round merges at most half of the tokens, so small `kept` take several.
    The sums into the partners are a product with a one-hot matrix: no scatter.
    """
    sizes = sizes.expand(x.shape[0], -1)
    while x.shape[1] > kept:
        removed = min(x.shape[1] - kept, x.shape[1] // 2)
        joined = torch.cat([x, keys], dim=2)
        joined, sizes = _merge_round(joined, keys, sizes, removed)
        x, keys = joined[..., : x.shape[2]], joined[..., x.shape[2] :]
    return x, sizes


def _merge_round(x: Tensor, keys: Tensor, sizes: Tensor, removed: int) -> tuple[Tensor, Tensor]:
    """Of the tokens at odd places, the `removed` most similar to one at an even place are merged into it."""
    unit = functional.normalize(keys, dim=-1)
    similarity = unit[:, 1::2] @ unit[:, 0::2].transpose(1, 2)
    partner = similarity.argmax(dim=2)
    order = best_tokens(similarity.amax(dim=2), similarity.shape[1])
    going, staying = order[:, :removed], order[:, removed:]
    targets = partner.gather(1, going)
    chosen = (targets.unsqueeze(-1) == torch.arange(similarity.shape[2], device=x.device)).to(x.dtype)
    odd, odd_sizes = x[:, 1::2], sizes[:, 1::2]
    weight = odd_sizes.gather(1, going).unsqueeze(-1)
    even_sizes = sizes[:, 0::2].unsqueeze(-1)
    total = even_sizes + chosen.transpose(1, 2) @ weight
    merged = (x[:, 0::2] * even_sizes + chosen.transpose(1, 2) @ (gather_tokens(odd, going) * weight)) / total
    left = torch.cat([merged, gather_tokens(odd, staying)], dim=1) if staying.shape[1] else merged
    left_sizes = torch.cat([total.squeeze(-1), odd_sizes.gather(1, staying)], dim=1)
    return left, left_sizes
