"""Spatial-reduction attention: the keys may come from a smaller grid than the queries.

The total width of the heads may differ from the width of the residual stream.

B batch, N tokens of an H x W grid, M keys, D width, q/v kept q/k and v dims per head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

ON_GRID = (nn.Conv2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d)


class KeyReduction(nn.Module):
    """The modules that reduce the tokens before the keys are computed.

    Modules that work on the grid run first; modules that work on its tokens follow.

    paths: maps the path of a module in this class to its path in the original block of the architecture.
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        on_grid = [(path, module) for path, module in modules if isinstance(module, ON_GRID)]
        on_tokens = [(path, module) for path, module in modules if not isinstance(module, ON_GRID)]
        self.on_grid = nn.Sequential(*(module for _, module in on_grid))
        self.on_tokens = nn.Sequential(*(module for _, module in on_tokens))
        self.paths = {f"on_grid.{i}": path for i, (path, _) in enumerate(on_grid)}
        self.paths |= {f"on_tokens.{i}": path for i, (path, _) in enumerate(on_tokens)}

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """x (B, N, D) -> (B, M, D)."""
        if len(self.on_grid):
            batch, _, width = x.shape
            x = x.transpose(1, 2).reshape(batch, width, grid[0], grid[1])
            x = self.on_grid(x).flatten(2).transpose(1, 2)
        tokens: Tensor = self.on_tokens(x)
        return tokens


class ReducedAttention(nn.Module):
    """Attention with a `KeyReduction`.

    `scale` is that of the original attention; it stays the same when dims are removed.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, nn.Linear]],
        projection: nn.Linear,
        reduction: KeyReduction,
        dims: tuple[int, int, int],
        *,
        scale: float,
    ) -> None:
        """layers: pairs of what a layer produces ("q", "kv", ...) and the layer.

        A layer that produces q reads all tokens; the others read the reduced tokens.
        dims: (heads, q, v).
        """
        super().__init__()
        self.heads, self.qk_dim, self.v_dim = dims
        self.scale = scale
        self.layers = nn.ModuleDict(dict(layers))
        self.reduction, self.projection = reduction, projection

    def forward(self, x: Tensor, grid: Sequence[int] = ()) -> Tensor:
        parts: dict[str, Tensor] = {}
        reduced = self.reduction(x, grid)
        for made, layer in self.layers.items():
            parts |= self._split(made, layer(x if "q" in made else reduced))
        q, k, v = parts["q"], parts["k"], parts["v"]
        if (
            torch.onnx.is_in_onnx_export()
        ):  # the exporter would add two products to the file: one scales q, one scales k
            logits = (q if self.scale == 1.0 else q * self.scale) @ k.transpose(-2, -1)
            mixed = torch.softmax(logits, dim=-1) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        batch, tokens, _ = x.shape
        out: Tensor = self.projection(mixed.transpose(1, 2).reshape(batch, tokens, self.heads * self.v_dim))
        return out

    @property
    def stream_readers(self) -> dict[str, nn.Linear]:
        """The layers that read all tokens, each with what it makes. The others read what the reduction gives."""
        found = {made: layer for made, layer in self.layers.items() if "q" in made or not self.reduction.paths}
        return {made: layer for made, layer in found.items() if isinstance(layer, nn.Linear)}

    def fold_scale(self) -> None:
        """Multiply the weights that produce q by the scale, in place.

        This saves one product per run in exported copies.
        """
        made = next(name for name in self.layers if "q" in name)
        layer, rows = self.layers[made], slice(0, self.heads * self.qk_dim)
        assert isinstance(layer, nn.Linear) and made.startswith("q")
        with torch.no_grad():
            layer.weight[rows].mul_(self.scale)
            if layer.bias is not None:
                layer.bias[rows].mul_(self.scale)
        self.scale = 1.0

    def _split(self, made: str, joined: Tensor) -> dict[str, Tensor]:
        """Split the output of one layer (B, N, sum of widths) into its parts, each (B, heads, N, dim)."""
        dims = [self.v_dim if name == "v" else self.qk_dim for name in made]
        parts = joined.split([self.heads * dim for dim in dims], dim=-1)
        return {
            name: part.unflatten(-1, (self.heads, dim)).transpose(1, 2)
            for name, part, dim in zip(made, parts, dims, strict=True)
        }
