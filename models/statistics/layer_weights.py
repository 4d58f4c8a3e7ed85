"""The linear layers of a dense network, in the form in which rankings and the recovery read them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.families.describe import head_count
from models.families.family import Family, linear_part, optional_part


@dataclass(frozen=True)
class LayerWeights:
    """The linear layers of one block of a dense network.

    The rows of `qkv` are q, k and v in this order, heads x dim each.
    """

    heads: int
    qkv: nn.Linear
    projection: nn.Linear
    fc1: nn.Linear
    fc2: nn.Linear
    scale1: Tensor | None = None
    scale2: Tensor | None = None
    """`scale1` and `scale2`: the layer scales (D,) after projection and fc2. None: the block has none."""


def layer_weights(blocks: Iterable[nn.Module], family: Family) -> tuple[LayerWeights, ...]:
    """Return the linear layers of each block of a dense network."""
    return tuple(
        LayerWeights(
            heads=head_count(block, family),
            qkv=_qkv(block, family),
            projection=linear_part(block, family.projection),
            fc1=linear_part(block, family.fc1),
            fc2=linear_part(block, family.fc2),
            scale1=_gamma(block, family.layer_scale1),
            scale2=_gamma(block, family.layer_scale2),
        )
        for block in blocks
    )


def _gamma(block: nn.Module, path: str) -> Tensor | None:
    gamma = getattr(optional_part(block, path), "gamma", None)
    return gamma.detach() if isinstance(gamma, Tensor) else None


def _qkv(block: nn.Module, family: Family) -> nn.Linear:
    """Return the layer that makes q, k and v.

    If several layers make them, return one layer with their rows in this order.
    """
    layers = {path: linear_part(block, path) for path in family.attention_layers}
    if list(family.attention_layers.values()) == ["qkv"]:
        return layers[family.qkv]
    weight = torch.cat([_rows_of(layers, family, name, "weight") for name in "qkv"])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joined.weight = nn.Parameter(weight)
    if next(iter(layers.values())).bias is not None:
        joined.bias = nn.Parameter(torch.cat([_rows_of(layers, family, name, "bias") for name in "qkv"]))
    return joined


def _rows_of(layers: dict[str, nn.Linear], family: Family, name: str, kind: str) -> Tensor:
    """Return the rows of the weight or the bias (`kind`) that make "q", "k" or "v"."""
    path = family.layer_of(name)
    made, tensor = family.attention_layers[path], getattr(layers[path], kind)
    rows: Tensor = tensor.detach().chunk(len(made))[made.index(name)]
    return rows
