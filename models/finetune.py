"""Fine-tuning of a pruned network with distillation from the original; every finished epoch can be resumed from."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn import functional

from models.data import Batch
from models.torch_network import TorchNetwork
from models.training import Course, train


@dataclass(frozen=True)
class Recipe:
    """distill: weight of KL(teacher || student) beside cross-entropy; without labels it is the whole loss."""

    epochs: int
    learning_rate: float
    batch: int
    distill: float
    seed: int


def finetune(
    network: TorchNetwork, teacher: TorchNetwork, data: Batch, recipe: Recipe, checkpoint: Path,
    after_epoch: Callable[[int, float], None],
) -> TorchNetwork:  # fmt: skip
    """A trained copy of `network`. after_epoch(epoch, mean loss) may raise to stop; the checkpoint then stays.

    The order of images in an epoch depends on the seed and the epoch alone, so a resumed training is the same training.
    """
    student = copy.copy(network)
    student.module = copy.deepcopy(network.module)
    optimizer = create_optimizer_v2(student.module, opt="adamw", lr=recipe.learning_rate, weight_decay=0.01)
    targets = teacher.outputs(data.images)

    def loss(rows: Tensor) -> Tensor:
        labels = None if data.labels is None else data.labels[rows]
        return distillation_loss(student.module(data.images[rows]), targets[rows], labels, recipe.distill)

    course = Course(recipe.epochs, recipe.batch, recipe.seed)
    train(student.module, optimizer, len(data.images), course, loss, checkpoint, after_epoch)
    return student


def distillation_loss(outputs: Tensor, targets: Tensor, labels: Tensor | None, distill: float) -> Tensor:
    """Cross-entropy + distill * KL(teacher || student), both means over images; temperature 1. Logits (n, C)."""
    divergence = functional.kl_div(
        functional.log_softmax(outputs, 1), functional.log_softmax(targets, 1), reduction="batchmean", log_target=True
    )
    if labels is None:
        return divergence
    return functional.cross_entropy(outputs, labels) + distill * divergence
