"""Token reducers as pure functions.

N tokens = P prefix + M patches + (0 or 1) fused token; D width. All sizes are static.

They use only sort, gather, sums and concatenation, which every ONNX runtime supports. No scatter is needed.
"""

import torch
from torch import Tensor
from torch.nn import functional

LEAST_SHARE = 1e-4
"""Lower bound for the weight of a token in a weighted fused token, relative to the mean weight.
It avoids division by 0.
"""


def class_attention(attention: Tensor, patches: slice) -> Tensor:
    """Scores the patch tokens by the class token's attention to them, averaged over heads (MDC, section 3.3).

    attention: (B, H, N, N) after softmax. patches: places of the M patch tokens. Return (B, M).
    """
    return attention[:, :, 0, patches].mean(dim=1)


def received_attention(attention: Tensor, patches: slice) -> Tensor:
    """Scores the patch tokens by the attention that they receive, averaged over heads and queries.

    For networks without a class token. Return (B, M).
    """
    return attention[:, :, :, patches].mean(dim=(1, 2))


def strongest_attention(attention: Tensor, patches: slice) -> Tensor:
    """Compute CP-ViT's score of one layer: the largest attention of any query to the token, summed over heads.

    Return (B, M).
    """
    return attention[:, :, :, patches].amax(dim=2).sum(dim=1)


def best_tokens(scores: Tensor, kept: int) -> Tensor:
    """Return the indices of the `kept` highest scores, best first: (B, M) -> (B, kept). Ties go to the lower index.

    torch.topk does not define the order of ties, so PyTorch uses a stable sort. ONNX has no stable sort, but its TopK
    orders ties by index, so the export uses topk.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.topk(scores, kept, dim=1).indices
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :kept]


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Select tokens: x (B, M, D), index (B, K) -> (B, K, D)."""
    return _kept_tokens(x, index)


def _kept_tokens(x: Tensor, index: Tensor, start: int = 0, behind: range = range(0)) -> Tensor:
    """Select the first `start` tokens, those at index (B, K) after them, and those `behind`.

    It looks up rows of the flattened tokens (B, N, D). ONNX's Gather then copies whole rows, which is faster than
    GatherElements, which copies single values.
    """
    batch, tokens, width = x.shape
    first = torch.arange(batch, device=x.device).unsqueeze(1) * tokens
    wanted = [first + torch.tensor([list(places)], device=x.device) for places in (range(start), behind) if places]
    wanted.insert(start > 0, index + (first + start))
    return functional.embedding(torch.cat(wanted, dim=1), x.reshape(batch * tokens, width))


def membership(index: Tensor, size: int) -> Tensor:
    """Return bool (B, size): True for the values that occur in index (B, K), whose values are below `size`.

    It compares values instead of using a scatter.
    """
    return (index.unsqueeze(2) == torch.arange(size, device=index.device)).any(dim=1)


def drop(x: Tensor, index: Tensor, prefix: int, patches: int) -> Tensor:
    """Keep prefix, indexed patch tokens, and the fused token if there is one: (B, N, D) -> (B, P + K [+ 1], D)."""
    return _kept_tokens(x, index, prefix, range(prefix + patches, x.shape[1]))


def fuse(
    x: Tensor, index: Tensor, prefix: int, patches: int, *, packaged: int, weights: Tensor | None = None
) -> Tensor:
    """Works like `drop`, but combines the removed tokens in one fused token at the end.

    The fused token is the mean of the removed tokens (MDC) or, with `weights`, their weighted mean (SPViT). If x
    already ends with a fused token, both are merged as in HeatViT, so there is never more than one.

    weights: (B, M), at least 0. They are scaled to mean 1 over the patches.
    packaged: number of tokens that the fused token at the end of x stands for, 0 if there is none. This number is also
    its weight in the new mean.

    The removed tokens are never gathered. Without weights, their sum is the sum of all tokens minus the sum of the kept
    ones. With weights, this difference would consist mostly of rounding errors, because the removed tokens have the
    small weights; so the weighted sum is computed directly.
    """
    kept = index.shape[1]
    left = _kept_tokens(x, index, prefix)
    if weights is None:
        count = patches - kept + packaged
        whole = [0.0] * prefix + [1 / count] * patches + [packaged / count] * bool(packaged)
        stays = [0.0] * prefix + [1 / count] * kept
        return torch.cat([left, _weighted_sum(x, whole) - _weighted_sum(left, stays)], dim=1)
    body = x[:, prefix : prefix + patches]
    share = (weights / weights.mean(dim=1, keepdim=True).clamp(min=1e-12)).clamp(min=LEAST_SHARE)
    gone = (share * (1 - membership(index, patches).to(share.dtype))).unsqueeze(-1)
    total, weight = (gone * body).sum(dim=1, keepdim=True), gone.sum(dim=1, keepdim=True)
    if packaged:
        total, weight = total + x[:, prefix + patches :] * packaged, weight + packaged
    return torch.cat([left, total / weight], dim=1)


def _weighted_sum(x: Tensor, weights: list[float]) -> Tensor:
    """Return the sum of the tokens (B, N, D), each with its weight: (B, 1, D).

    In an exported file it is one product with a constant, in the place of several small operators.
    """
    row = x.new_tensor([weights])
    return row @ x if torch.onnx.is_in_onnx_export() else (row.T * x).sum(dim=1, keepdim=True)


def merge(x: Tensor, keys: Tensor, sizes: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Merge the most similar tokens until `kept` remain (ToMe, arXiv 2210.09461, section 3: bipartite matching).

    x: (B, M, D). keys: (B, M, q); the similarity of two tokens is the cosine of their keys. sizes: (1 or B, M).
    Return the merged tokens (B, kept, D), which are means weighted by size, and their sizes (B, kept).
    One round merges at most half of the tokens, so a small `kept` takes several rounds. Tokens are added to their
    partners by a product with a one-hot matrix, so that no scatter is needed.
    """
    sizes = sizes.expand(x.shape[0], -1)
    while x.shape[1] > kept:
        removed = min(x.shape[1] - kept, x.shape[1] // 2)
        joined = torch.cat([x, keys], dim=2)
        joined, sizes = _merge_round(joined, keys, sizes, removed)
        x, keys = joined[..., : x.shape[2]], joined[..., x.shape[2] :]
    return x, sizes


def _merge_round(x: Tensor, keys: Tensor, sizes: Tensor, removed: int) -> tuple[Tensor, Tensor]:
    """Run one round: merges tokens at odd positions into their most similar token at an even position.

    Only the `removed` most similar pairs are merged. Return the new tokens and their sizes.
    """
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
