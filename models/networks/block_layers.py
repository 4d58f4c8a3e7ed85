"""Finds the linear layers of a block by their role (q/k/v, projection, fc1, fc2).

It works for each form of a block: as timm built it, pruned, or flattened for inference
(models/export/inference_blocks.py).
"""

from collections.abc import Iterator, Sequence

from torch import nn

from models.export.inference_blocks import RowAttention
from models.families.family import Family, block_lists, optional_part, part
from models.pruning.pruned_blocks import PrunedBlock, PrunedBlocks
from models.pruning.reduced_attention import ReducedAttention
from models.structure import BlockPlan, Layer


def int8_layers(module: nn.Module, family: Family, plans: Sequence[BlockPlan]) -> Iterator[nn.Linear]:
    """Yield the linear layers of a pruned module that its int8 plan quantises."""
    for block, plan in zip(_blocks(module, family), plans, strict=True):
        for layer, linears in layers_of(block, family).items():
            if layer not in plan.exact:
                yield from linears


def _blocks(module: nn.Module, family: Family) -> Iterator[nn.Module]:
    """Yield the blocks of all stages. It leaves out the last norm, which `PrunedBlocks` may hold."""
    for path in block_lists(module, family):
        owner = part(module, path)
        yield from owner.blocks() if isinstance(owner, PrunedBlocks) else owner.children()


def layers_of(block: nn.Module, family: Family) -> dict[Layer, list[nn.Linear]]:
    """Return the linear layers of one block by role. The list of a removed layer is empty."""
    found = _of_plain(block) if isinstance(block, PrunedBlock) else _of_sliced(block, family)
    return {layer: [one for one in some if isinstance(one, nn.Linear)] for layer, some in found.items()}


def _of_plain(block: PrunedBlock) -> dict[Layer, list[nn.Module | None]]:
    attention, mlp = block.attention, block.mlp
    made: list[nn.Module | None] = []
    if attention is not None:
        made = list(attention.made) if isinstance(attention, RowAttention) else [attention.qkv]
    return {
        "qkv": made,
        "proj": [attention.projection if attention is not None else None],
        "fc1": [mlp.fc1 if mlp is not None else None],
        "fc2": [mlp.fc2 if mlp is not None else None],
    }


def _of_sliced(block: nn.Module, family: Family) -> dict[Layer, list[nn.Module | None]]:
    attention = optional_part(block, family.rebuilt_attention)
    if isinstance(attention, ReducedAttention):
        made: list[nn.Module | None] = list(attention.layers.values())
        projection: nn.Module | None = attention.projection
    else:
        made = [optional_part(block, path) for path in family.attention_layers]
        projection = optional_part(block, family.projection)
    fc1, fc2 = optional_part(block, family.fc1), optional_part(block, family.fc2)
    return {"qkv": made, "proj": [projection], "fc1": [fc1], "fc2": [fc2]}
