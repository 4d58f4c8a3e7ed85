"""Where each head looks, over the calibration images (CP-ViT, arXiv 2203.04570).

B images, H heads, N tokens = P prefix + M patches on a grid of height x width, d q/k dims per head.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.families.describe import head_count
from models.families.family import Family, is_present, part

NEAR_SHARE = 0.1
"""A short distance is the radius of a disc over this share of the grid: on 14 x 14 it holds 21 patches, as many as the
"10 positions" to either side that CP-ViT's authors count along the flattened grid."""


@dataclass(frozen=True)
class AttentionStatistics:
    """Of one block.

    heads (H,): mean over images of the sum over patch keys of the strongest attention that any query pays to the key.
    Summed over heads it is the mean of what the token score of the block sums to over the patches.
    local (): the attention range, in [0, 1]: share of patch queries (of all heads and images) whose strongest patch key
    lies within a short distance on the grid. Near 1 the block looks around each patch, near 0 anywhere.
    """

    heads: Tensor
    local: Tensor


def near(grid: tuple[int, int]) -> Tensor:
    """Whether two patches are a short distance apart, itself included. Returns (M, M) bool."""
    height, width = grid
    radius = max(1.0, math.sqrt(NEAR_SHARE * height * width / math.pi))
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).reshape(-1, 2)
    square = ((places[:, None] - places[None]) ** 2).sum(-1)
    return square <= radius**2


class AttentionSums:
    """Adds up one block's attention over batches, in float64."""

    def __init__(self, close: Tensor, prefix: int) -> None:
        """close: `near` of the block's grid."""
        self.close, self.prefix, self.images = close, prefix, 0
        self.heads: Tensor | float = 0.0
        self.local: Tensor | float = 0.0

    def add(self, attention: Tensor) -> None:
        """attention (B, H, N, N) after softmax."""
        self.images += len(attention)
        to_patches = attention[..., self.prefix :]
        self.heads = self.heads + to_patches.amax(dim=2).double().sum((0, 2))
        strongest = to_patches[:, :, self.prefix :].argmax(dim=3)  # (B, H, M)
        close = self.close.to(attention.device).expand(*strongest.shape, -1)
        self.local = self.local + close.gather(3, strongest.unsqueeze(3)).double().mean((1, 2, 3)).sum()

    def statistics(self) -> AttentionStatistics:
        assert isinstance(self.heads, Tensor) and isinstance(self.local, Tensor)
        return AttentionStatistics(self.heads.cpu() / self.images, self.local.cpu() / self.images)


def block_attention(block: nn.Module, family: Family, joined: Tensor) -> Tensor:
    """The attention that a block pays, from the output (B, N, 3 H d) of its q/k/v layer. Returns (B, H, N, N)."""
    batch, tokens, _ = joined.shape
    q, k, _ = joined.reshape(batch, tokens, 3, head_count(block, family), -1).permute(2, 0, 3, 1, 4)
    q_norm, k_norm = part(block, family.q_norm), part(block, family.k_norm)
    q, k = q_norm(q) if is_present(q_norm) else q, k_norm(k) if is_present(k_norm) else k
    owner, _, attribute = family.scale.rpartition(".")
    scale = float(getattr(part(block, owner), attribute))
    return torch.softmax((q * scale) @ k.transpose(-2, -1), dim=-1)


def attention_statistics(
    blocks: Sequence[nn.Module], family: Family, grid: tuple[int, int], prefix: int, run: Callable[[], object]
) -> list[AttentionStatistics]:
    """Of each block. `run`: sends the calibration images through the network that has the blocks, once."""
    close = near(grid)
    sums = [AttentionSums(close, prefix) for _ in blocks]
    hooks = []
    for block, seen in zip(blocks, sums, strict=True):

        def hook(
            _m: nn.Module, _inputs: object, joined: Tensor, block: nn.Module = block, seen: AttentionSums = seen
        ) -> None:
            seen.add(block_attention(block, family, joined))

        hooks.append(part(block, family.qkv).register_forward_hook(hook))
    try:
        run()
    finally:
        for handle in hooks:
            handle.remove()
    return [seen.statistics() for seen in sums]
