"""SPViT's token selector (arXiv 2112.13890, section 3.2; HeatViT 2211.08110): how much each patch token is worth keeping.

A pure function of the patch tokens that are there; prefix and package are not looked at. B batch, M tokens, D = H x d width.
The first product over [local, global] features is written as two, so that the global half is computed once per image.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.structure import selector_dims


class TokenSelector(nn.Module):
    """Each head votes on each token; a token's votes are averaged by weights that the token gives the heads."""

    def __init__(self, width: int, heads: int, seed: int) -> None:
        """heads divides width. seed: of the initial weights; the same seed gives the same selector."""
        super().__init__()
        dim, half, quarter, few = selector_dims(width, heads)
        self.heads, self.dim = heads, dim
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Linear(dim, half)
        self.local = nn.Linear(half, half)
        self.everywhere = nn.Linear(half, half, bias=False)
        self.middle = nn.Linear(half, quarter)
        self.vote = nn.Linear(quarter, 2)
        self.squeeze = nn.Linear(heads, few)
        self.weigh = nn.Linear(few, heads)
        self._initialise(torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """T_keep, in (0, 1): x (B, M, D) -> (B, M). present: (B, M), 0 for tokens that are gone but still in x; they do
        not enter the mean over tokens. None: all are there."""
        parts = x.reshape(x.shape[0], x.shape[1], self.heads, self.dim)
        local = functional.gelu(self.feature(self.norm(parts)))
        hidden = functional.gelu(self.local(local) + self.everywhere(_mean_over_tokens(local, present)))
        votes = torch.softmax(self.vote(functional.gelu(self.middle(hidden))), dim=-1)[..., 0]
        weights = torch.sigmoid(self.weigh(functional.gelu(self.squeeze(parts.mean(dim=-1)))))
        return (weights * votes).sum(dim=-1) / weights.sum(dim=-1)

    def _initialise(self, draw: torch.Generator) -> None:
        """As nn.Linear does, from a generator of its own."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=draw)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _mean_over_tokens(x: Tensor, present: Tensor | None) -> Tensor:
    """x (B, M, H, d), present (B, M) -> (B, 1, H, d)."""
    if present is None:
        return x.mean(dim=1, keepdim=True)
    shares = present / present.sum(dim=1, keepdim=True).clamp(min=1)
    return (x * shares[:, :, None, None]).sum(dim=1, keepdim=True)
