"""Prunes heads and neurons inside the architecture's own blocks.

The blocks keep the forward method of their architecture; only the layers inside them become smaller.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.errors import UnsupportedModel
from models.families.describe_stages import head_count
from models.families.family import Family, is_present, linear_part, optional_part, part, replace_part
from models.pruning.prune_layers import narrow_depthwise, narrow_linear, narrow_norm, take
from models.pruning.readers import Readers
from models.pruning.reduced_attention import KeyReduction, ReducedAttention
from models.structure import BlockPlan


class NoMlp(nn.Module):
    """Replaces a removed MLP. It returns zero, so nothing is added to the residual stream."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x.new_zeros(())


class MlpOnly(nn.Module):
    """A block without its attention.

    Further arguments that the architecture passes to a block are passed on to the MLP.
    """

    def __init__(self, norm2: nn.Module, mlp: nn.Module, after2: nn.Module) -> None:
        super().__init__()
        self.norm2, self.mlp, self.after2 = norm2, mlp, after2

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        out: Tensor = x + self.after2(self.mlp(self.norm2(x), *context))
        return out


def slice_blocks(
    model: nn.Module,
    path: str,
    family: Family,
    originals: Sequence[nn.Module],
    *,
    first: int,
    plans: Sequence[BlockPlan],
) -> None:
    """Replace all blocks of one stage by their pruned form. Changes `originals`, which are copies made by `prune`."""
    for plan in plans:
        _slice_block(originals[plan.source - first], family, plan)
    kept = [_half(originals[plan.source - first], family, plan) for plan in plans]
    owner = part(model, path)
    new = nn.ModuleList(kept) if isinstance(owner, nn.ModuleList) else nn.Sequential(*kept)
    replace_part(model, path, new)


def readers(block: nn.Module, family: Family) -> Readers:
    """Return the layers of a sliced block that recovery may refit."""
    projection = fc1 = fc2 = None
    qkv: dict[str, nn.Linear] = {}
    if not isinstance(block, MlpOnly):
        attention = optional_part(block, family.rebuilt_attention)
        if isinstance(attention, ReducedAttention):
            projection, qkv = attention.projection, attention.stream_readers
        else:
            projection = linear_part(block, family.projection)
            qkv = {made: linear_part(block, path) for path, made in family.attention_layers.items()}
    if optional_part(block, family.fc2) is not None:
        fc1, fc2 = linear_part(block, family.fc1), linear_part(block, family.fc2)
    return Readers(projection, fc2, qkv, fc1)


def _slice_block(block: nn.Module, family: Family, plan: BlockPlan) -> None:
    if plan.heads:
        if family.rebuilt_attention:
            replace_part(block, family.rebuilt_attention, _rebuilt(block, family, plan))
        else:
            _slice_heads(block, family, plan)
    if plan.neurons:
        _slice_neurons(block, family, plan.neurons)


def _slice_heads(block: nn.Module, family: Family, plan: BlockPlan) -> None:
    """Keep the heads of the plan, which are never cut in part, in the block's attention, in place."""
    count = head_count(block, family)
    dim = part_rows(block, family, plan)[0][2] // count
    kept = [head.qk[0] // dim for head in plan.heads]
    for path, table_dim in family.head_tables.items():
        owner, _, name = path.rpartition(".")
        table = take(block.get_parameter(path), table_dim, kept)
        setattr(part(block, owner), name, nn.Parameter(table))
    for path, rows, _ in part_rows(block, family, plan):
        layer = linear_part(block, path)
        replace_part(block, path, narrow_linear(layer, rows, range(layer.in_features)))
    projection = linear_part(block, family.projection)
    outputs = [i for head in plan.heads for i in head.v]
    replace_part(block, family.projection, narrow_linear(projection, range(projection.out_features), outputs))
    owner, _, attribute = family.heads.rpartition(".")
    setattr(part(block, owner), attribute, len(kept))


def _rebuilt(block: nn.Module, family: Family, plan: BlockPlan) -> ReducedAttention:
    layers = []
    for path, rows, _ in part_rows(block, family, plan):
        layer = linear_part(block, path)
        layers.append((family.attention_layers[path], narrow_linear(layer, rows, range(layer.in_features))))
    projection = linear_part(block, family.projection)
    outputs = [i for head in plan.heads for i in head.v]
    reduction = ((path, optional_part(block, path)) for path in family.key_reduction)
    owner, _, attribute = family.scale.rpartition(".")
    return ReducedAttention(
        layers,
        narrow_linear(projection, range(projection.out_features), outputs),
        KeyReduction([(path, module) for path, module in reduction if module is not None]),
        (len(plan.heads), len(plan.heads[0].qk), len(plan.heads[0].v)),
        scale=float(getattr(part(block, owner), attribute)),
    )


def part_rows(block: nn.Module, family: Family, plan: BlockPlan) -> list[tuple[str, list[int], int]]:
    """Return three facts for each layer that produces q, k or v.

    They are the layer's path, the rows to keep, and the number of rows that each of q, k and v has in the original
    layer.
    """
    found = []
    for path, made in family.attention_layers.items():
        size = linear_part(block, path).out_features // len(made)
        rows: list[int] = []
        for place, name in enumerate(made):
            rows += [place * size + i for head in plan.heads for i in (head.v if name == "v" else head.qk)]
        found.append((path, rows, size))
    return found


def _slice_neurons(block: nn.Module, family: Family, neurons: Sequence[int]) -> None:
    fc1, fc2 = linear_part(block, family.fc1), linear_part(block, family.fc2)
    if len(neurons) == fc1.out_features:
        return
    replace_part(block, family.fc1, narrow_linear(fc1, neurons, range(fc1.in_features)))
    replace_part(block, family.fc2, narrow_linear(fc2, range(fc2.out_features), neurons))
    for path in family.between:
        module = optional_part(block, path)
        if isinstance(module, nn.Conv2d):
            replace_part(block, path, narrow_depthwise(module, neurons))
        elif isinstance(module, nn.LayerNorm):
            replace_part(block, path, narrow_norm(module, neurons))
        elif module is not None and any(True for _ in module.parameters()):
            raise UnsupportedModel(
                f"The module {path} is a {type(module).__name__}. vitfit cannot remove neurons from it. It must be a"
                " Conv2d or a LayerNorm. Use a model without this module."
            )


def _half(block: nn.Module, family: Family, plan: BlockPlan) -> nn.Module:
    """Return the block without the sublayers (attention, MLP) that the plan removes."""
    after = optional_part(block, family.drop_paths[1]) or nn.Identity()
    scale = optional_part(block, family.layer_scale2)
    if not plan.heads:
        mlp = part(block, family.fc1.rpartition(".")[0]) if plan.neurons else NoMlp()
        modules = [m for m in (scale, after) if m is not None and is_present(m)]
        norm = part(block, family.norm2) if plan.neurons else nn.Identity()
        return MlpOnly(norm, mlp, nn.Sequential(*modules) if plan.neurons else nn.Identity())
    if not plan.neurons:
        replace_part(block, family.fc1.rpartition(".")[0], NoMlp())
        for path in (family.norm2, family.drop_paths[1], family.layer_scale2):
            if path:
                replace_part(block, path, nn.Identity())
    return block
