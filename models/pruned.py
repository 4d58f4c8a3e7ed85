"""The modules that stand in a pruned network. Plain torch: they export, train and deep-copy like any other.

B batch, N tokens, D width, H heads, q/v kept q/k and v dims per head.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import tokens


class Gather(nn.Module):
    """Reads some dims of the residual stream: (B, N, D) -> (B, N, K)."""

    index: Tensor

    def __init__(self, index: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(index, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index)


class HeadNorm(nn.Module):
    """Layer norm over the kept q/k dims of each head, with each head's own kept weights. x (B, H, N, q)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        """weight, bias: (H, q)."""
        super().__init__()
        self.weight = nn.Parameter(weight.unsqueeze(1))
        self.bias = nn.Parameter(bias.unsqueeze(1)) if bias is not None else None
        self.dim, self.eps = weight.shape[-1], eps

    def forward(self, x: Tensor) -> Tensor:
        x = functional.layer_norm(x, (self.dim,), eps=self.eps) * self.weight
        return x if self.bias is None else x + self.bias


class PrunedAttention(nn.Module):
    """Multi-head attention whose q/k and v dims may differ. `scale` is the original's: fewer dims do not change it."""

    def __init__(
        self, qkv: nn.Linear, projection: nn.Linear, dims: tuple[int, int, int], scale: float,
        norms: tuple[nn.Module, nn.Module], inputs: nn.Module, outputs: nn.Module,
    ) -> None:  # fmt: skip
        """dims: (H, q, v). qkv: D -> H*q, H*q, H*v. inputs, outputs: gathers before qkv and projection."""
        super().__init__()
        self.heads, self.qk_dim, self.v_dim = dims
        self.scale = scale
        self.inputs, self.qkv = inputs, qkv
        self.q_norm, self.k_norm = norms
        self.outputs, self.projection = outputs, projection

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        if torch.onnx.is_in_onnx_export():  # the exporter would scale q and k once more each
            return self._join(self._attention(q, k) @ v)
        return self._join(functional.scaled_dot_product_attention(q, k, v, scale=self.scale))

    def with_scores(self, x: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The same result, and `score` of the attention (B, H, N, N)."""
        q, k, v = self._split(x)
        attention = self._attention(q, k)
        return self._join(attention @ v), score(attention)

    def fold_scale(self) -> None:
        """Moves the scale into the weights that make q, in place: one product less per run. For exported copies."""
        with torch.no_grad():
            if isinstance(self.q_norm, HeadNorm):
                tensors: list[Tensor | None] = [self.q_norm.weight, self.q_norm.bias]
            else:
                rows = slice(0, self.heads * self.qk_dim)
                tensors = [self.qkv.weight[rows], None if self.qkv.bias is None else self.qkv.bias[rows]]
            for tensor in tensors:
                if tensor is not None:
                    tensor.mul_(self.scale)
        self.scale = 1.0

    def _attention(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, H, N, N) after softmax."""
        return torch.softmax((q if self.scale == 1.0 else q * self.scale) @ k.transpose(-2, -1), dim=-1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads first, then q from k from v: that split copies whole rows, the other way round strided ones."""
        (batch, tokens, _), heads = x.shape, self.heads
        joined = self.qkv(self.inputs(x))
        if self.qk_dim == self.v_dim:
            parts = joined.reshape(batch, tokens, 3 * heads, self.v_dim).transpose(1, 2)
            q, k, v = parts.split([heads, heads, heads], dim=1)
        else:
            pairs, values = joined.split([2 * heads * self.qk_dim, heads * self.v_dim], dim=-1)
            q, k = pairs.reshape(batch, tokens, 2 * heads, self.qk_dim).transpose(1, 2).split([heads, heads], dim=1)
            v = values.reshape(batch, tokens, heads, self.v_dim).transpose(1, 2)
        return self.q_norm(q), self.k_norm(k), v

    def _join(self, x: Tensor) -> Tensor:
        """(B, H, N, v) -> (B, N, D)."""
        batch, _, tokens, _ = x.shape
        joined: Tensor = self.projection(
            self.outputs(x.transpose(1, 2).reshape(batch, tokens, self.heads * self.v_dim))
        )
        return joined


class PrunedMlp(nn.Module):
    def __init__(self, inputs: nn.Module, fc1: nn.Linear, activation: nn.Module, fc2: nn.Linear) -> None:
        super().__init__()
        self.inputs, self.fc1, self.activation, self.fc2 = inputs, fc1, activation, fc2

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(self.inputs(x))))
        return out


class TokenReduction(nn.Module):
    """Keeps the best `kept` of `patches` patch tokens of each image; all counts are static.

    For comparing two runtimes token by token: `forced`, when set, replaces the choice by given indices (B, kept), and
    each choice is added to `chosen` when that is a list.
    """

    forced: Tensor | None
    chosen: list[Tensor] | None

    def __init__(self, kept: int, prefix: int, patches: int, packaged: int, fuse: bool, by_class: bool) -> None:
        super().__init__()
        self.kept, self.prefix, self.patches, self.packaged = kept, prefix, patches, packaged
        self.fuse, self.by_class = fuse, by_class
        self.forced = None
        self.chosen = None

    def score(self, attention: Tensor) -> Tensor:
        """(B, H, N, N) -> (B, patches). An earlier package is not a candidate."""
        rule = tokens.class_attention if self.by_class else tokens.received_attention
        return rule(attention, self.prefix)[:, : self.patches]

    def choose(self, scores: Tensor) -> Tensor:
        return tokens.best_tokens(scores, self.kept) if self.forced is None else self.forced

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        index = self.choose(scores)
        if self.chosen is not None:
            self.chosen.append(index)
        if self.fuse:
            return tokens.fuse(x, index, self.prefix, self.patches, self.packaged)
        return tokens.drop(x, index, self.prefix, self.patches)


class PrunedBlock(nn.Module):
    """x + attention, [token reduction], x + MLP. A half that is gone is None."""

    def __init__(
        self, norm1: nn.Module | None, attention: PrunedAttention | None, after1: nn.Module,
        reduction: TokenReduction | None, norm2: nn.Module | None, mlp: PrunedMlp | None, after2: nn.Module,
    ) -> None:  # fmt: skip
        """after1, after2: layer scale and stochastic depth."""
        super().__init__()
        self.norm1, self.attention, self.after1 = norm1, attention, after1
        self.reduction = reduction
        self.norm2, self.mlp, self.after2 = norm2, mlp, after2

    def forward(self, x: Tensor) -> Tensor:
        if self.attention is not None and self.norm1 is not None:
            if self.reduction is None:
                x = x + self.after1(self.attention(self.norm1(x)))
            else:
                update, scores = self.attention.with_scores(self.norm1(x), self.reduction.score)
                x = self.reduction(x + self.after1(update), scores)
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.after2(self.mlp(self.norm2(x)))
        return x


class TokenWeights(nn.Module):
    """Before average pooling: each token counts as much as it stands for. weights (N,), mean 1 over the pooled tokens."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights.unsqueeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights
