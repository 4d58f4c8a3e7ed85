"""Token reducers as pure functions. N tokens = P prefix + M patches + (0 or 1) package; D width; all sizes static.

Only sort, gather, sums and concatenation: every ONNX runtime has them, and no scatter is needed.
"""

import torch
from torch import Tensor
from torch.nn import functional


def class_attention(attention: Tensor, prefix: int) -> Tensor:
    """Score of each token after the prefix: the class token's attention to it, mean over heads (MDC, section 3.3).

    attention: (B, H, N, N) after softmax. Returns (B, N - P).
    """
    return attention[:, :, 0, prefix:].mean(dim=1)


def received_attention(attention: Tensor, prefix: int) -> Tensor:
    """Without a class token: the attention that a token receives, mean over heads and queries. (B, N - P)."""
    return attention[:, :, :, prefix:].mean(dim=(1, 2))


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


def drop(x: Tensor, index: Tensor, prefix: int, patches: int) -> Tensor:
    """Prefix, the indexed patch tokens, and a package if there was one. x (B, N, D) -> (B, P + K [+ 1], D)."""
    kept = gather_tokens(x[:, prefix : prefix + patches], index)
    return torch.cat([x[:, :prefix], kept, x[:, prefix + patches :]], dim=1)


def fuse(x: Tensor, index: Tensor, prefix: int, patches: int, packaged: int) -> Tensor:
    """As `drop`, but the removed tokens leave as one package token: their mean (MDC; merged with an earlier package as
    in HeatViT, so that there is never more than one).

    `packaged`: how many tokens the package at the end of x already stands for, 0 when there is none.
    The sum of the removed is the sum of all less the sum of the kept: the removed are never gathered.
    """
    body = x[:, prefix : prefix + patches]
    kept = gather_tokens(body, index)
    total = body.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)
    if packaged:
        total = total + x[:, prefix + patches :] * packaged
    count = patches - index.shape[1] + packaged
    return torch.cat([x[:, :prefix], kept, total / count], dim=1)
