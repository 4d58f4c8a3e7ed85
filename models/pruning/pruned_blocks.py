"""The modules of a pruned network. They are plain PyTorch modules, so they can be exported, trained and deep-copied.

B batch, N tokens, D width, H heads, q/v kept q/k and v dims per head.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.pruning.relative_positions import RelativePositions
from models.pruning.token_reduction import TokenReduction, TokenState, TokenWatch

Step = Callable[[Tensor], Tensor]
"""One step of a block, called by `PrunedBlock.walk`: (B, N, D) -> (B, N', D)."""


class Gather(nn.Module):
    """Selects some dims of its input, such as the residual stream: (B, N, D) -> (B, N, K)."""

    index: Tensor

    def __init__(self, index: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(index, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index)


class HeadNorm(nn.Module):
    """Layer norm over the kept q/k dims of each head, with separate weights for each head. x: (B, H, N, q)."""

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
    """Multi-head attention whose q/k and v dims may differ.

    `scale` is the scale of the original attention; it stays the same when dims are removed.
    """

    def __init__(
        self,
        qkv: nn.Linear,
        projection: nn.Linear,
        dims: tuple[int, int, int],
        scale: float,
        *,
        norms: tuple[nn.Module, nn.Module],
        inputs: nn.Module,
        outputs: nn.Module,
    ) -> None:
        """dims: (H, q, v).

        qkv: layer with D inputs and H*q + H*q + H*v outputs.
        inputs, outputs: `Gather` (or identity) before qkv and before the projection.
        """
        super().__init__()
        self.heads, self.qk_dim, self.v_dim = dims
        self.scale = scale
        self.inputs, self.qkv = inputs, qkv
        self.q_norm, self.k_norm = norms
        self.outputs, self.projection = outputs, projection

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x: (B, N, D). bias: added to the attention logits, broadcastable to (B, H, N, N)."""
        q, k, v = self._split(x)
        if (
            torch.onnx.is_in_onnx_export()
        ):  # the exporter would add two products to the file: one scales q, one scales k
            return self._join(self._attention(q, k, bias) @ v)
        return self._join(functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale))

    def with_attention(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result of `forward`, the attention after softmax (B, H, N, N) and the keys (B, H, N, q)."""
        q, k, v = self._split(x)
        attention = self._attention(q, k, bias)
        return self._join(attention @ v), attention, k

    def masked(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Compute attention with a mask through which gradients flow.

        allowed: (B, 1, N, N), 1 if query i may see key j, otherwise 0. Each query must see itself.
        """
        q, k, v = self._split(x)
        logits = q * self.scale @ k.transpose(-2, -1)
        weights = (logits - logits.detach().amax(dim=-1, keepdim=True)).exp() * allowed
        return self._join(weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30) @ v)

    def fold_scale(self) -> None:
        """Multiply the weights that produce q by the scale, in place.

        This saves one product per run in exported copies.
        """
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
        """Return the attention after softmax, (B, H, N, N)."""
        logits = (q if self.scale == 1.0 else q * self.scale) @ k.transpose(-2, -1)
        return torch.softmax(logits if bias is None else logits + bias, dim=-1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k (B, H, N, q) and v (B, H, N, v).

        The joint output is split into heads first, and then into q, k and v. This order copies contiguous rows; the
        reverse order would copy strided ones.
        """
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
        """Join the heads and apply the projection: (B, H, N, v) -> (B, N, D)."""
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
    """A pruned transformer block: [token reduction], x + attention, [token reduction], x + MLP.

    The norm and the layers of a removed sublayer are None.
    """

    def __init__(
        self,
        norm1: nn.Module | None,
        attention: PrunedAttention | None,
        after1: nn.Module,
        reduction: TokenReduction | None,
        *,
        norm2: nn.Module | None,
        mlp: PrunedMlp | None,
        after2: nn.Module,
        watch: TokenWatch | None,
        prefix: int,
        positions: RelativePositions | None = None,
    ) -> None:
        """after1, after2: layer scale and stochastic depth of each sublayer.

        prefix: number of tokens before the patches.
        """
        super().__init__()
        self.norm1, self.attention, self.after1 = norm1, attention, after1
        self.reduction, self.watch, self.prefix = reduction, watch, prefix
        self.norm2, self.mlp, self.after2 = norm2, mlp, after2
        self.positions = positions

    def forward(self, x: Tensor, state: TokenState | None = None) -> Tensor:
        state = TokenState() if state is None else state
        return self.walk(x, lambda x: self.reduce(x, state), lambda x: self.attend(x, state), self.transform)

    def walk(self, x: Tensor, reduce: Step, attend: Step, transform: Step) -> Tensor:
        """Run the steps of a block in their order. x: (B, N, D). Each step gets the current residual stream.

        reduce: returns the tokens that remain.
        attend, transform: return the update that is added to the residual stream, before layer scale.
        A step is skipped if this block lacks the part that it needs.
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
        """Return the tokens that remain after the block's token reduction."""
        assert self.reduction is not None
        left: Tensor = self.reduction(x, state)
        return left

    def attend(self, x: Tensor, state: TokenState) -> Tensor:
        """Return the attention's update of the residual stream.

        If the block has a `TokenWatch`, it reads the attention.
        """
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
        """Return the MLP's update of the residual stream."""
        assert self.mlp is not None and self.norm2 is not None
        update: Tensor = self.mlp(self.norm2(x))
        return update


class PrunedBlocks(nn.Module):
    """The blocks of one stage. It creates the `TokenState` of each forward pass. The name of a block is its index.

    If the model averages its tokens, each token must count as often as the number of tokens that it stands for. This
    module then holds the last norm of the network. It multiplies each normalised token by its size, divided by the mean
    size of the pooled tokens.

    If the model passes a grid (B, H, W, D), the remaining tokens are returned as a grid with one row, (B, 1, N, D).
    """

    def __init__(
        self,
        blocks: Sequence[PrunedBlock],
        prefix: int,
        weigh_prefix: bool,
        last_norm: nn.Module | None,
        *,
        filled: bool = False,
    ) -> None:
        """last_norm: None if the tokens are not weighted.

        weigh_prefix: True if the model also pools the prefix tokens.
        filled: pads the output with zeros to the number of input tokens. Needed for a model that reshapes its tokens to
        a grid afterwards, although nothing reads that grid.
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
        """Return the number of blocks.

        timm's `forward_intermediates` needs the length of a model's blocks, iterates over them and slices them.
        """
        return len(self.blocks())

    def __iter__(self) -> Iterator[PrunedBlock]:
        return iter(self.blocks())

    def __getitem__(self, place: slice) -> list[PrunedBlock]:
        return self.blocks()[place]

    def blocks(self) -> list[PrunedBlock]:
        return [block for block in self.children() if isinstance(block, PrunedBlock)]

    def run(self, x: Tensor, state: TokenState) -> Tensor:
        """Run x (B, N, D) through all blocks."""
        for block in self.blocks():
            x = block(x, state)
        return x

    def leave(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """Return the tokens for the rest of the network.

        sizes: (1 or B, N - P), number of tokens that each one stands for.
        """
        return x if self.last_norm is None else self._weighed(self.last_norm(x), sizes)

    def _weighed(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        assert sizes is not None
        prefix = sizes.new_ones(sizes.shape[0], self.prefix)
        every = torch.cat([prefix, sizes], dim=1)
        pooled = every if self.weigh_prefix else sizes
        return x * (every / pooled.mean(dim=1, keepdim=True)).unsqueeze(-1)


def row_of_blocks(module: nn.Module) -> PrunedBlocks:
    """Return the blocks of a pruned plain network, which has exactly one `PrunedBlocks`."""
    return next(found for found in module.modules() if isinstance(found, PrunedBlocks))
