"""SPViT's token selector (arXiv 2112.13890, section 3.2; HeatViT 2211.08110): scores how useful each patch token is.

The score depends only on the current patch tokens, not on the prefix or the fused token. B batch, M tokens, D = H x d
width. The paper's first product over the joined [local, global] features is computed as two products. The global one is
then computed once per image instead of once per token.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.structure import selector_dims


class TokenSelector(nn.Module):
    """Computes T_keep, the score of each token.

    Each head votes on each token. The score is the weighted mean of the votes; each token has its own weights for the
    heads.
    """

    def __init__(self, width: int, heads: int, seed: int) -> None:
        """heads: must divide width. seed: for the initial weights; the same seed gives the same selector."""
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
        """Return T_keep, in (0, 1): x (B, M, D) -> (B, M).

        present: (B, M), 0 for masked tokens, which are still in x but do not count in the mean over tokens; otherwise
        1. None: no token is masked.
        """
        parts = x.reshape(x.shape[0], x.shape[1], self.heads, self.dim)
        local = functional.gelu(self.feature(self.norm(parts)))
        hidden = functional.gelu(self.local(local) + self.everywhere(_mean_over_tokens(local, present)))
        votes = torch.softmax(self.vote(functional.gelu(self.middle(hidden))), dim=-1)[..., 0]
        weights = torch.sigmoid(self.weigh(functional.gelu(self.squeeze(parts.mean(dim=-1)))))
        return (weights * votes).sum(dim=-1) / weights.sum(dim=-1)

    def _initialise(self, draw: torch.Generator) -> None:
        """Initialise the linear layers with the generator `draw`: weights as nn.Linear does, biases with zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=draw)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _mean_over_tokens(x: Tensor, present: Tensor | None) -> Tensor:
    """Average the features over the present tokens: x (B, M, H, d), present (B, M) -> (B, 1, H, d)."""
    if present is None:
        return x.mean(dim=1, keepdim=True)
    shares = present / present.sum(dim=1, keepdim=True).clamp(min=1)
    return (x * shares[:, :, None, None]).sum(dim=1, keepdim=True)
