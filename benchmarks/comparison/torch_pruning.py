"""Torch-Pruning's choice of heads and neurons, which vitfit's own engine then removes.

Torch-Pruning decides with its own dependency graph, importance and pruner. This module compares the weights that are
left with the original weights, and so finds the members that stay. `models.pruning.prune` then removes the same
members. The result is the same network, but vitfit writes its ONNX file. So Torch-Pruning's row has no disadvantage
from another exporter, and closed-form recovery can be used on it.
"""

import copy
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional

from models.data.dataset import Batch
from models.networks.network import Network
from models.structure import BlockPlan, Plan, identity

Importance = Literal["magnitude", "taylor"]


def kept_by_torch_pruning(network: Network, importance: Importance, keep: float, data: Batch) -> Plan:
    """Return the plan of Torch-Pruning's local pruning.

    keep: the share of the heads and neurons of every block that stays, in (0, 1]. data: labelled images; only
    importance "taylor" uses them.
    """
    model = copy.deepcopy(network.module)
    blocks: Any = model.blocks
    heads = {block.attn.qkv: block.attn.num_heads for block in blocks}
    bottleneck = [layer for block in blocks for layer in (block.attn.proj, block.mlp.fc2)]
    stem: Any = model
    scored = (
        torch_pruning.importance.GroupTaylorImportance()
        if importance == "taylor"
        else torch_pruning.importance.GroupMagnitudeImportance(p=2)
    )
    example = torch.zeros(1, *network.structure.image)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=scored,
        pruning_ratio=1 - keep,
        head_pruning_ratio=1 - keep,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=[*bottleneck, stem.head, stem.patch_embed.proj],
        unwrapped_parameters=[(stem.cls_token, 2), (stem.pos_embed, 2)],
    )
    if importance == "taylor":
        _backward(model, data)
    for group in pruner.step(interactive=True):
        group.prune()
    return _plan(network, model)


def _backward(model: nn.Module, data: Batch) -> None:
    assert data.labels is not None
    for images, labels in zip(data.images.split(64), data.labels.split(64), strict=True):
        loss: Tensor = functional.cross_entropy(model(images), labels)
        loss.backward()


def _plan(network: Network, small: nn.Module) -> Plan:
    """Return a plan with the members that stay, as indices into the original.

    Torch-Pruning copies the rows that stay, so their values identify them in the original.
    """
    whole = identity(network.structure)
    blocks: list[BlockPlan] = []
    dense: Any = network.module
    left_blocks: Any = small.blocks
    for plan, source, left in zip(whole.blocks, dense.blocks, left_blocks, strict=True):
        neurons = _rows(source.mlp.fc1.weight, left.mlp.fc1.weight)
        dim = source.attn.qkv.out_features // 3 // source.attn.num_heads
        values = _rows(source.attn.qkv.weight[-source.attn.qkv.out_features // 3 :], _last_third(left.attn.qkv.weight))
        heads = sorted({row // dim for row in values})
        blocks.append(BlockPlan(plan.source, tuple(plan.heads[h] for h in heads), tuple(neurons)))
    return Plan(whole.embed, tuple(blocks))


def _last_third(weight: Tensor) -> Tensor:
    return weight[-(weight.shape[0] // 3) :]


def _rows(original: Tensor, left: Tensor) -> list[int]:
    places = {tuple(row.tolist()): i for i, row in enumerate(original.detach())}
    return sorted(places[tuple(row.tolist())] for row in left.detach())
