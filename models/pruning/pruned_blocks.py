"""The modules that stand in a pruned network. Plain torch: they export, train and deep-copy like any other.

B batch, N tokens, D width, H heads, q/v kept q/k and v dims per head.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.pruning.relative_positions import RelativePositions
from models.pruning.token_reduction import TokenReduction, TokenState, TokenWatch

Step = Callable[[Tensor], Tensor]
"""A part of a block, as `PrunedBlock.walk` calls it: (B, N, D) -> (B, N', D)."""


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

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """bias: added to the logits, (B, 1, 1, N)."""
        q, k, v = self._split(x)
        if torch.onnx.is_in_onnx_export():  # the exporter would scale q and k once more each
            return self._join(self._attention(q, k, bias) @ v)
        return self._join(functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale))

    def with_attention(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The same result, the attention (B, H, N, N) and the keys (B, H, N, q)."""
        q, k, v = self._split(x)
        attention = self._attention(q, k, bias)
        return self._join(attention @ v), attention, k

    def masked(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Attention in which query i sees key j by allowed[:, :, i, j], 0 or 1, (B, 1, N, N); gradients reach it.

        Each query must see itself.
        """
        q, k, v = self._split(x)
        logits = q * self.scale @ k.transpose(-2, -1)
        weights = (logits - logits.detach().amax(dim=-1, keepdim=True)).exp() * allowed
        return self._join(weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30) @ v)

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

    def _attention(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """(B, H, N, N) after softmax."""
        logits = (q if self.scale == 1.0 else q * self.scale) @ k.transpose(-2, -1)
        return torch.softmax(logits if bias is None else logits + bias, dim=-1)

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


class PrunedBlock(nn.Module):
    """[token reduction], x + attention, [token reduction], x + MLP. A half that is gone is None."""

    def __init__(
        self, norm1: nn.Module | None, attention: PrunedAttention | None, after1: nn.Module,
        reduction: TokenReduction | None, norm2: nn.Module | None, mlp: PrunedMlp | None, after2: nn.Module,
        watch: TokenWatch | None, prefix: int, positions: RelativePositions | None = None,
    ) -> None:  # fmt: skip
        """after1, after2: layer scale and stochastic depth."""
        super().__init__()
        self.norm1, self.attention, self.after1 = norm1, attention, after1
        self.reduction, self.watch, self.prefix = reduction, watch, prefix
        self.norm2, self.mlp, self.after2 = norm2, mlp, after2
        self.positions = positions

    def forward(self, x: Tensor, state: TokenState | None = None) -> Tensor:
        state = TokenState() if state is None else state
        return self.walk(x, lambda x: self.reduce(x, state), lambda x: self.attend(x, state), self.transform)

    def walk(self, x: Tensor, reduce: Step, attend: Step, transform: Step) -> Tensor:
        """The one order of a block's parts. x (B, N, D); each step gets the residual stream as it is by then.

        reduce: returns the tokens that are left. attend, transform: return what is added to the stream, before layer scale.
        A step whose part this block lacks is not called.
        """
        if self.reduction is not None and self.reduction.at == "start":
            x = reduce(x)
        if self.attention is not None:
            x = x + self.after1(attend(x))
        if self.reduction is not None and self.reduction.at == "middle":
            x = reduce(x)
        if self.mlp is not None:
            x = x + self.after2(transform(x))
        return x

    def reduce(self, x: Tensor, state: TokenState) -> Tensor:
        """The tokens that the block's reduction leaves."""
        assert self.reduction is not None
        left: Tensor = self.reduction(x, state)
        return left

    def attend(self, x: Tensor, state: TokenState) -> Tensor:
        """What the attention adds. The block's watch, if it has one, sees the attention."""
        assert self.attention is not None and self.norm1 is not None
        bias = state.attention_bias(self.prefix)
        if self.positions is not None:
            bias = self.positions(state.places, x.shape[1])
        update: Tensor
        if self.watch is None:
            update = self.attention(self.norm1(x), bias)
        else:
            update, attention, keys = self.attention.with_attention(self.norm1(x), bias)
            self.watch(attention, keys, state)
        return update

    def transform(self, x: Tensor) -> Tensor:
        """What the MLP adds."""
        assert self.mlp is not None and self.norm2 is not None
        update: Tensor = self.mlp(self.norm2(x))
        return update


class PrunedBlocks(nn.Module):
    """All blocks, under their places as names, with what they pass on beside the tokens.

    With average pooling each token counts as much as it stands for: the norm over all tokens then stands here, and each
    token leaves it times its size over the mean size of the tokens that are pooled.

    Where the model passes a grid, (B, H, W, D), what is left of it leaves as one row, (B, 1, N, D).
    """

    def __init__(
        self, blocks: Sequence[PrunedBlock], prefix: int, weigh_prefix: bool, last_norm: nn.Module | None,
        filled: bool = False,
    ) -> None:  # fmt: skip
        """last_norm: None when tokens are not weighed. weigh_prefix: whether the prefix is pooled too.
        filled: zeros fill up the tokens to as many as came, for a model that lays them out as a grid that nothing reads.
        """
        super().__init__()
        for place, block in enumerate(blocks):
            self.add_module(str(place), block)
        self.prefix, self.weigh_prefix, self.last_norm = prefix, weigh_prefix, last_norm
        self.filled = filled

    def forward(self, x: Tensor) -> Tensor:
        grid = x.dim() == 4
        x = x.flatten(1, 2) if grid else x
        state, tokens = TokenState(), x.shape[1]
        x = self.leave(self.run(x, state), state.sizes)
        if self.filled:
            x = functional.pad(x, (0, 0, 0, tokens - x.shape[1]))
        return x.unsqueeze(1) if grid else x

    def __len__(self) -> int:
        """Number, order and slices of blocks are what timm's `forward_intermediates` asks of a model's blocks."""
        return len(self.blocks())

    def __iter__(self) -> Iterator[PrunedBlock]:
        return iter(self.blocks())

    def __getitem__(self, place: slice) -> list[PrunedBlock]:
        return self.blocks()[place]

    def blocks(self) -> list[PrunedBlock]:
        return [block for block in self.children() if isinstance(block, PrunedBlock)]

    def run(self, x: Tensor, state: TokenState) -> Tensor:
        """x (B, N, D) through all blocks."""
        for block in self.blocks():
            x = block(x, state)
        return x

    def leave(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """What the rest of the network gets. sizes: (1 or B, N - P), how many tokens each one stands for."""
        return x if self.last_norm is None else self._weighed(self.last_norm(x), sizes)

    def _weighed(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        assert sizes is not None
        prefix = sizes.new_ones(sizes.shape[0], self.prefix)
        every = torch.cat([prefix, sizes], dim=1)
        pooled = every if self.weigh_prefix else sizes
        return x * (every / pooled.mean(dim=1, keepdim=True)).unsqueeze(-1)


def row_of_blocks(module: nn.Module) -> PrunedBlocks:
    """The blocks of a pruned plain network, which has one row of them."""
    return next(found for found in module.modules() if isinstance(found, PrunedBlocks))
