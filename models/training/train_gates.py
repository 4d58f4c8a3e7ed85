"""Trains soft gates with an L1 penalty (VTP, arXiv 2104.08500): loss = task + lambda * sum of |a|.

Gates and weights are trained together. The weights therefore learn not to rely on inputs whose gates become small.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from models.data.dataset import Batch
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork, of_known_family
from models.statistics.gates import attach, fold
from models.training.finetune import distillation_loss
from models.training.loop import Course, train


@dataclass(frozen=True)
class GateRecipe:
    """Settings of a training of gates.

    l1: lambda, the weight of the L1 penalty.
    learning_rate, gate_learning_rate: highest learning rates of the weights and of the gates.
    """

    epochs: int
    l1: float
    learning_rate: float
    gate_learning_rate: float
    batch: int
    seed: int


def train_gates(
    network: Network, data: Batch, recipe: GateRecipe, checkpoint: Path, *, after_epoch: Callable[[int, float], None]
) -> TorchNetwork:
    """Return a trained copy of the dense `network`. Its gates are folded into the weights; `gates` holds their values.

    The task loss is the cross-entropy with the labels. Without labels it is the KL divergence from the outputs of
    `network`.
    after_epoch: called with (epoch, mean loss). It may raise to stop the training. The checkpoint is then kept, and the
    next call continues after the last stored epoch.
    """
    dense = of_known_family(network, "the training of gates")
    trained = dense.with_module(copy.deepcopy(dense.module))
    optimizer = create_optimizer_v2(trained.module, opt="adamw", lr=recipe.learning_rate, weight_decay=0.01)
    gates = attach(trained.blocks(), trained.family)
    optimizer.add_param_group({"params": gates, "lr": recipe.gate_learning_rate, "weight_decay": 0.0})
    targets = network.outputs(data.images)

    def loss(module: nn.Module, rows: Tensor, _progress: float) -> Tensor:
        labels = None if data.labels is None else data.labels[rows]
        task = distillation_loss(module(data.images[rows]), targets[rows], labels, distill=0.0)
        return task + recipe.l1 * size(gates)

    course = Course(recipe.epochs, recipe.batch, recipe.seed)
    train(
        trained.module, optimizer, len(data.images), course, loss=loss, checkpoint=checkpoint, after_epoch=after_epoch
    )
    return trained.with_gates(fold(trained.blocks(), trained.family))


def size(gates: Sequence[Tensor]) -> Tensor:
    """Return the sum of |a| over all gates."""
    return torch.stack([gate.abs().sum() for gate in gates]).sum()
