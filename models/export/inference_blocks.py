"""The exported form of pruned blocks: the tokens of all images are rows of one matrix, and weights include scales.

The arithmetic is the same, but runtimes execute this graph faster. Matrix products and norms on rows need no reshapes.
The heads of a single image need no copies. ONNX Runtime has one operator for the computation of all heads.
B images, N tokens, H heads, R = B*N rows.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from models.families.family import part, replace_part
from models.pruning.prune_layers import split_linear
from models.pruning.pruned_blocks import PrunedAttention, PrunedBlock, PrunedBlocks
from models.pruning.reduced_attention import ReducedAttention
from models.pruning.token_reduction import TokenReduction, TokenState
from models.structure import Block, Stage

Form = Literal["standard", "cpu"]
"""standard: only operators of the ONNX standard. cpu: also operators that ONNX Runtime adds for CPUs."""
FORMS: tuple[Form, ...] = get_args(Form)


def fold_scales(module: nn.Module) -> None:
    """Multiply attention scales and layer scales into neighbouring weights, in place.

    Use it on a copy for the export.
    """
    for found in list(module.modules()):
        if isinstance(found, PrunedAttention | ReducedAttention):
            found.fold_scale()
        if isinstance(found, PrunedBlock):
            found.after1 = _folded(found.after1, found.attention.projection if found.attention else None)
            found.after2 = _folded(found.after2, found.mlp.fc2 if found.mlp else None)


def as_rows(module: nn.Module, places: Sequence[tuple[str, Stage]], batch: int | None, form: Form) -> None:
    """Replace the pruned blocks in `module` by `RowBlocks`, in place. The scales must already be in the weights.

    places: path and pruned structure of each stage. Blocks with relative positions are not replaced, because the table
        of positions adds values to each head separately.
    """
    for path, stage in places:
        blocks = part(module, path)
        if isinstance(blocks, PrunedBlocks) and len(blocks) and not any(block.positions for block in blocks.blocks()):
            replace_part(module, path, RowBlocks(blocks, stage.blocks, batch == 1, form))


class RowBlocks(PrunedBlocks):
    def __init__(self, blocks: PrunedBlocks, shapes: Sequence[Block], single: bool, form: Form) -> None:
        """shapes: the structures of the blocks, with static token counts. single: each run has exactly one image."""
        super().__init__(blocks.blocks(), blocks.prefix, blocks.weigh_prefix, blocks.last_norm, filled=blocks.filled)
        self.tokens_out = shapes[-1].tokens_out
        merging = any(block.reduction and block.reduction.reducer == "merge" for block in self.blocks())
        for block, shape in zip(self.blocks(), shapes, strict=True):
            if block.attention is not None:
                fused = form == "cpu" and block.watch is None and not merging
                block.add_module("attention", RowAttention(block.attention, shape.tokens_attended, single, fused))
            if block.reduction is not None:
                block.add_module("reduction", RowReduction(block.reduction, shape.tokens))

    def run(self, x: Tensor, state: TokenState) -> Tensor:
        width = x.shape[2]
        return super().run(x.reshape(-1, width), state).reshape(-1, self.tokens_out, width)


class RowReduction(nn.Module):
    def __init__(self, reduction: TokenReduction, tokens: int) -> None:
        super().__init__()
        self.reduction, self.tokens, self.at = reduction, tokens, reduction.at

    def forward(self, rows: Tensor, state: TokenState) -> Tensor:
        width = rows.shape[1]
        x: Tensor = self.reduction(rows.reshape(-1, self.tokens, width), state)
        return x.reshape(-1, width)


class RowAttention(nn.Module):
    """The row form of a `PrunedAttention` whose scale is already in its weights."""

    def __init__(self, attention: PrunedAttention, tokens: int, single: bool, fused: bool) -> None:
        """fused: use one operator for all heads, if q and k have no norms.

        This operator cannot add a bias to the logits.
        """
        super().__init__()
        a = attention
        self.heads, self.dims, self.tokens, self.single = a.heads, (a.qk_dim, a.qk_dim, a.v_dim), tokens, single
        self.inputs, self.outputs, self.projection = a.inputs, a.outputs, a.projection
        self.norms = nn.ModuleList([a.q_norm, a.k_norm, nn.Identity()])
        self.fused = fused and isinstance(a.q_norm, nn.Identity)
        sizes = [a.heads * dim for dim in self.dims]
        self.made = nn.ModuleList([a.qkv] if self.fused else split_linear(a.qkv, sizes))

    def forward(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the attention: rows (R, D) -> (R, D). bias: (B, 1, 1, N), added to the attention logits."""
        if not self.fused:
            return self.with_attention(rows, bias)[0]
        x = self.inputs(rows).unflatten(0, (-1, self.tokens))
        (qkv,) = self.made
        assert isinstance(qkv, nn.Linear)
        weight, sizes = qkv.weight.t(), [self.heads * dim for dim in self.dims]
        offset = weight.new_zeros(weight.shape[1]) if qkv.bias is None else qkv.bias
        mixed: Tensor = FusedAttention.apply(x, weight.contiguous(), offset, self.heads, sizes)
        return self._leave(mixed.flatten(0, 1))

    def with_attention(self, rows: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same result as `forward`, the attention (B, H, N, N) and the keys (B, H, N, q)."""
        x = self.inputs(rows)
        q, k, v = (norm(self._heads_first(x, i)) for i, norm in enumerate(self.norms))
        logits = q @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + (bias.squeeze(0) if self.single else bias)
        attention = torch.softmax(logits, dim=-1)
        result = self._leave((attention @ v).transpose(-3, -2).reshape(-1, self.heads * self.dims[2]))
        return (result, attention.unsqueeze(0), k.unsqueeze(0)) if self.single else (result, attention, k)

    def _heads_first(self, x: Tensor, part: int) -> Tensor:
        """Return one part (q, k or v) with heads first: (B, H, N, dim), or (H, N, dim) for a single image.

        Matrix products read the transposed tensor of a single image directly, without a copy.
        """
        made: Tensor = self.made[part](x)
        shape = (self.tokens, self.heads, self.dims[part])
        return (made.reshape(shape) if self.single else made.reshape(-1, *shape)).transpose(-3, -2)

    def _leave(self, mixed: Tensor) -> Tensor:
        left: Tensor = self.projection(self.outputs(mixed))
        return left


class FusedAttention(torch.autograd.Function):
    """The operator com.microsoft::Attention: the q/k/v projection and the attention of all heads.

    In PyTorch, `forward` computes the same result, but slowly.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  called with a tuple of its arguments
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, heads: int, sizes: list[int]
    ) -> Tensor:
        """x (B, N, D), weight (D, sum of sizes), sizes: numbers of columns of q, k, v -> (B, N, columns of v)."""
        parts = (x @ weight + bias).split(sizes, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        mixed: Tensor = (torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v).transpose(1, 2).flatten(2)
        return mixed

    @staticmethod
    def symbolic(  # noqa: PLR0917  torch's exporter calls it by position
        g: Any, x: Any, weight: Any, bias: Any, heads: int, sizes: list[int]
    ) -> Any:
        found = g.op(
            "com.microsoft::Attention", x, weight, bias, num_heads_i=heads, qkv_hidden_sizes_i=list(sizes), scale_f=1.0
        )
        found.setType(x.type().with_sizes([*x.type().sizes()[:2], sizes[2]]))
        return found


def _folded(after: nn.Module, layer: nn.Linear | None) -> nn.Module:
    """Multiply the layer scale in `after` into the preceding layer, in place. Return the rest of `after`."""
    parts = list(after) if isinstance(after, nn.Sequential) else [after]
    for scale in parts:
        gamma = getattr(scale, "gamma", None)
        if layer is not None and isinstance(gamma, Tensor):
            with torch.no_grad():
                layer.weight.mul_(gamma.unsqueeze(1))
                if layer.bias is not None:
                    layer.bias.mul_(gamma)
            parts = [other for other in parts if other is not scale]
    return nn.Sequential(*parts) if parts else nn.Identity()
