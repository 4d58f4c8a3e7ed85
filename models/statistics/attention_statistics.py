"""Attention statistics of each block over the calibration images (CP-ViT, arXiv 2203.04570).

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
"""A short distance is the radius of a disc that covers this share of the grid. On a 14 x 14 grid the disc holds 21
patches. The authors of CP-ViT also count 21: the patch itself and 10 positions to either side along the flattened
grid."""


@dataclass(frozen=True)
class AttentionStatistics:
    """Attention statistics of one block.

    heads (H,): for each patch key, take the strongest attention that any query pays to it; sum over keys, average over
        images. The sum over heads equals the mean over images of the block's token score, summed over patches.
    local (): the attention range, in [0, 1]. It is the share of patch queries (of all heads and images) whose strongest
        patch key is within a short distance on the grid. Near 1, each patch attends to its surroundings; near 0, to any
        place.
    """

    heads: Tensor
    local: Tensor


def near(grid: tuple[int, int]) -> Tensor:
    """Return (M, M) bool: whether two patches are within a short distance of each other. A patch is near itself."""
    height, width = grid
    radius = max(1.0, math.sqrt(NEAR_SHARE * height * width / math.pi))
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).reshape(-1, 2)
    square = ((places[:, None] - places[None]) ** 2).sum(-1)
    return square <= radius**2


class AttentionSums:
    """Accumulates the attention of one block over batches, in float64."""

    def __init__(self, close: Tensor, prefix: int) -> None:
        """close: the result of `near` for the grid of the block."""
        self.close, self.prefix, self.images = close, prefix, 0
        self.heads: Tensor | float = 0.0
        self.local: Tensor | float = 0.0

    def add(self, attention: Tensor) -> None:
        """Add one batch of attention (B, H, N, N), after the softmax."""
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
    """Compute the attention (B, H, N, N) of a block from the output (B, N, 3 H d) of its q/k/v layer."""
    batch, tokens, _ = joined.shape
    q, k, _ = joined.reshape(batch, tokens, 3, head_count(block, family), -1).permute(2, 0, 3, 1, 4)
    q_norm, k_norm = part(block, family.q_norm), part(block, family.k_norm)
    q, k = q_norm(q) if is_present(q_norm) else q, k_norm(k) if is_present(k_norm) else k
    owner, _, attribute = family.scale.rpartition(".")
    scale = float(getattr(part(block, owner), attribute))
    return torch.softmax((q * scale) @ k.transpose(-2, -1), dim=-1)


def attention_statistics(
    blocks: Sequence[nn.Module], family: Family, grid: tuple[int, int], prefix: int, *, run: Callable[[], object]
) -> list[AttentionStatistics]:
    """Collect the statistics of each block.

    run: sends the calibration images once through the network that has these blocks.
    """
    close = near(grid)
    sums = [AttentionSums(close, prefix) for _ in blocks]
    hooks = []
    for block, seen in zip(blocks, sums, strict=True):

        def hook(
            _m: nn.Module, _inputs: object, joined: Tensor, block: nn.Module = block, *, seen: AttentionSums = seen
        ) -> None:
            seen.add(block_attention(block, family, joined))

        hooks.append(part(block, family.qkv).register_forward_hook(hook))
    try:
        run()
    finally:
        for handle in hooks:
            handle.remove()
    return [seen.statistics() for seen in sums]
