"""Fine-tuning of a pruned network with distillation from the original; every finished epoch can be resumed from."""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional

from models.data import Batch
from models.errors import InvalidRequest
from models.torch_network import TorchNetwork

WARMUP_SHARE = 0.05
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(images, labels) -> mixed images, class probabilities (n, C), the teacher's logits of them (n, C)."""


@dataclass(frozen=True)
class Recipe:
    """distill: weight of KL(teacher || student) beside cross-entropy; without labels it is the whole loss."""

    epochs: int
    learning_rate: float
    batch: int
    distill: float
    seed: int
    cutmix: float = 0.0
    """Alpha of CutMix (arXiv 1905.04899); 0: none. It mixes labels too, so there must be some. UP-ViTs: 0.5, distill 0.2."""


def finetune(
    network: TorchNetwork, teacher: TorchNetwork, data: Batch, recipe: Recipe, checkpoint: Path,
    after_epoch: Callable[[int, float], None],
) -> TorchNetwork:  # fmt: skip
    """A trained copy of `network`. after_epoch(epoch, mean loss) may raise to stop; the checkpoint then stays.

    The order of images in an epoch, and how they are mixed, depend on the seed and the epoch alone, so a resumed training
    is the same training. Raises: InvalidRequest for CutMix without labels.
    """
    check_cutmix(recipe.cutmix, labelled=data.labels is not None)
    student = copy.copy(network)
    student.module = copy.deepcopy(network.module)
    optimizer = create_optimizer_v2(student.module, opt="adamw", lr=recipe.learning_rate, weight_decay=0.01)
    targets = teacher.outputs(data.images)
    for epoch in range(_resume(checkpoint, student.module, optimizer), recipe.epochs):
        mix = None if not recipe.cutmix else mixing(teacher, targets.shape[1], recipe, epoch)
        loss = _train_epoch(student.module, optimizer, data, targets, recipe, epoch, mix)
        _save(checkpoint, student.module, optimizer, epoch + 1)
        after_epoch(epoch + 1, loss)
    student.module.eval()
    return student


def _train_epoch(
    module: nn.Module, optimizer: torch.optim.Optimizer, data: Batch, targets: Tensor, recipe: Recipe, epoch: int,
    mix: Mix | None,
) -> float:  # fmt: skip
    module.train()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(recipe.seed * 10007 + epoch))
    torch.manual_seed(recipe.seed * 10007 + epoch)
    steps = math.ceil(len(order) / recipe.batch)
    total = 0.0
    for step, rows in enumerate(order.split(recipe.batch)):
        _set_learning_rate(optimizer, recipe, (epoch + step / steps) / recipe.epochs)
        labels = None if data.labels is None else data.labels[rows]
        images, wanted = data.images[rows], targets[rows]
        if mix is not None and labels is not None:
            images, labels, wanted = mix(images, labels)
        loss = distillation_loss(module(images), wanted, labels, recipe.distill)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    return total / len(order)


def check_cutmix(cutmix: float, labelled: bool) -> None:
    """Raises: InvalidRequest."""
    if cutmix and not labelled:
        raise InvalidRequest(f"CutMix (alpha {cutmix:g}) mixes labels; these data have none. Set finetune.cutmix to 0.")


def mixing(teacher: TorchNetwork, classes: int, recipe: Recipe, epoch: int) -> Mix:
    """CutMix of this epoch: mixed images, their class probabilities, and what the teacher says of them."""
    mixup = Mixup(0.0, recipe.cutmix, label_smoothing=0.0, num_classes=classes)  # type: ignore[no-untyped-call]
    np.random.seed((recipe.seed * 10007 + epoch) % 2**32)  # timm draws from numpy's global generator

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        even = len(images) - len(images) % 2  # image i is mixed with image n - i: of an odd number one stays whole
        whole, certain = images[even:], functional.one_hot(labels[even:], classes).to(images)
        if even:
            mixed, shares = mixup(images[:even].clone(), labels[:even])
            images, certain = torch.cat([mixed, whole]), torch.cat([shares.to(images), certain])
        return images, certain, teacher.outputs(images).clone()

    return mix


def distillation_loss(outputs: Tensor, targets: Tensor, labels: Tensor | None, distill: float) -> Tensor:
    """Cross-entropy + distill * KL(teacher || student), both means over images; temperature 1. Logits (n, C); labels (n,),
    or probabilities (n, C) of mixed images."""
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
        group["lr"] = recipe.learning_rate * min(share, 1.0)


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
