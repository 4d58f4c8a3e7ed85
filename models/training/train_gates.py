"""Training of soft gates with an L1 penalty (VTP, arXiv 2104.08500): loss = task + lambda * sum of |a|.

Gates and weights are trained together, so what the small gates leave unused is already unused by the weights.
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
    """l1: lambda. gate_learning_rate: of the gates, learning_rate: of the weights; both at their highest."""

    epochs: int
    l1: float
    learning_rate: float
    gate_learning_rate: float
    batch: int
    seed: int


def train_gates(
    network: Network, data: Batch, recipe: GateRecipe, checkpoint: Path, after_epoch: Callable[[int, float], None]
) -> TorchNetwork:
    """A trained copy of the dense `network` with its gates folded into the weights, their values in `gates`.

    The task is cross-entropy with the labels; without labels it is KL to the outputs of `network`. after_epoch(epoch,
    mean loss) may raise to stop; the checkpoint then stays, and the next call goes on behind it.
    """
    dense = of_known_family(network, "training of gates")
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
    train(trained.module, optimizer, len(data.images), course, loss, checkpoint, after_epoch)
    return trained.with_gates(fold(trained.blocks(), trained.family))


def size(gates: Sequence[Tensor]) -> Tensor:
    """Sum of |a|."""
    return torch.stack([gate.abs().sum() for gate in gates]).sum()
