"""Torch-Pruning's choice of heads and neurons, carried out by our engine.

The library decides (its dependency graph, its importance, its pruner); what it kept is read back from the weights that are
left, and the same members are then removed by `models.pruning.prune`. The network is the same, its ONNX file is ours: the row is
not held back by an exporter, and closed-form recovery can be tried on it.
"""

import copy
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional

from models.data.dataset import Batch
from models.networks.torch_network import TorchNetwork
from models.structure import BlockPlan, Plan, identity

Importance = Literal["magnitude", "taylor"]


def kept_by_torch_pruning(network: TorchNetwork, importance: Importance, keep: float, data: Batch) -> Plan:
    """The plan of its local pruning to `keep` of the heads and neurons of every block. taylor: needs data."""
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


def _plan(network: TorchNetwork, small: nn.Module) -> Plan:
    """What is left, as indices into the original: rows were copied, so they are found again by value."""
    whole = identity(network.structure)
    blocks: list[BlockPlan] = []
    for plan, dense, left in zip(whole.blocks, network.blocks(), list(small.blocks), strict=True):  # type: ignore[arg-type]
        source: Any = dense
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
