"""Fine-tuning of a pruned network with distillation from the original; every finished epoch can be resumed from."""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional

from models.data import Batch
from models.torch_network import TorchNetwork

WARMUP_SHARE = 0.05
Loss = Callable[[Tensor, float], Tensor]
"""(rows of the images, progress in [0, 1) over the whole training) -> the loss, a mean over these images."""


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

    def loss_of(rows: Tensor, _progress: float) -> Tensor:
        labels = None if data.labels is None else data.labels[rows]
        return distillation_loss(student.module(data.images[rows]), targets[rows], labels, recipe.distill)

    train(student.module, optimizer, loss_of, len(data.images), recipe, checkpoint, after_epoch)
    return student


def train(
    module: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Loss, images: int, recipe: Recipe, checkpoint: Path,
    after_epoch: Callable[[int, float], None],
) -> None:  # fmt: skip
    """Trains `module` in place, from the last finished epoch in `checkpoint` on.

    A parameter group of the optimizer may have a "share": its learning rate over the recipe's.
    """
    for epoch in range(_resume(checkpoint, module, optimizer), recipe.epochs):
        loss = _train_epoch(module, optimizer, loss_of, images, recipe, epoch)
        _save(checkpoint, module, optimizer, epoch + 1)
        after_epoch(epoch + 1, loss)
    module.eval()


def _train_epoch(
    module: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Loss, images: int, recipe: Recipe, epoch: int
) -> float:
    module.train()
    order = torch.randperm(images, generator=torch.Generator().manual_seed(recipe.seed * 10007 + epoch))
    torch.manual_seed(recipe.seed * 10007 + epoch)
    steps = math.ceil(len(order) / recipe.batch)
    total = 0.0
    for step, rows in enumerate(order.split(recipe.batch)):
        progress = (epoch + step / steps) / recipe.epochs
        _set_learning_rate(optimizer, recipe, progress)
        loss = loss_of(rows, progress)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    return total / len(order)


def distillation_loss(outputs: Tensor, targets: Tensor, labels: Tensor | None, distill: float) -> Tensor:
    """Cross-entropy + distill * KL(teacher || student), both means over images; temperature 1. Logits (n, C)."""
    divergence = functional.kl_div(
        functional.log_softmax(outputs, 1), functional.log_softmax(targets, 1), reduction="batchmean", log_target=True
    )
    if labels is None:
        return divergence
    return functional.cross_entropy(outputs, labels) + distill * divergence


def _set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, progress: float) -> None:
    """Linear warm-up, then a half cosine to zero. progress in [0, 1) over the whole training."""
    if progress < WARMUP_SHARE:
        share = (progress + 1e-3) / WARMUP_SHARE
    else:
        share = 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * min(share, 1.0) * group.get("share", 1.0)


def _resume(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Epochs that are done already; loads them."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epochs"])


def _save(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    beside = checkpoint.with_suffix(".part")
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epochs}, beside)
    os.replace(beside, checkpoint)
