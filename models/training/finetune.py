"""Fine-tunes a pruned network with distillation from the original. Training can resume after every finished epoch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional

from models.data.dataset import Batch
from models.errors import InvalidRequest
from models.networks.network import Network, outputs_of
from models.statistics.class_logits import class_logits
from models.training.distributed import AfterEpoch, in_processes, on_gpus
from models.training.loop import Course, finished_epochs, load_trained, train

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(images, labels) -> mixed images, their class probabilities (n, C), the teacher's logits for them (n, C)."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a fine-tuning.

    learning_rate: the highest one of the schedule. batch: images per step, over all processes.
    distill: weight of KL(teacher || student), which is added to the cross-entropy. Without labels, KL is the whole
    loss.
    """

    epochs: int
    learning_rate: float
    batch: int
    distill: float
    seed: int
    cutmix: float = 0.0
    """Alpha of CutMix (arXiv 1905.04899); 0 turns it off. CutMix mixes labels too, so it needs labels.

    UP-ViTs uses alpha 0.5 with distill 0.2.
    """

    @property
    def course(self) -> Course:
        return Course(self.epochs, self.batch, self.seed)


def finetune(
    network: Network,
    teacher: Network,
    data: Batch,
    recipe: Recipe,
    *,
    checkpoint: Path,
    after_epoch: Callable[[int, float], None],
) -> Network:
    """Return a trained copy of `network`.

    after_epoch: called with (epoch, mean loss). It may raise to stop the training; the checkpoint is then kept.

    The order and the mixing of the images depend only on the seed and the epoch, so a resumed training gives the same
    result. If the machine has GPUs, one process for each GPU trains on its share of every batch. The mean over a batch
    is then the same up to rounding.
    Raises: InvalidRequest for CutMix without labels.
    """
    check_cutmix(recipe.cutmix, labelled=data.labels is not None)
    student = network.with_module(copy.deepcopy(network.module))
    where, what = on_gpus(), (student.module, teacher.module, data, recipe, checkpoint)
    if where is None:
        train_to_answer(*what, after_epoch, Accelerator(cpu=True))
        return student
    if finished_epochs(checkpoint) < recipe.epochs:
        in_processes(where, train_to_answer, what, after_epoch)
    load_trained(checkpoint, student.module)
    return student


def train_to_answer(  # noqa: PLR0917  called with a tuple of its arguments
    student: nn.Module,
    teacher: nn.Module,
    data: Batch,
    recipe: Recipe,
    checkpoint: Path,
    after_epoch: AfterEpoch,
    accelerator: Accelerator,
) -> None:
    """Train `student` in place on the teacher's logits and the labels. Each process of the accelerator calls this."""
    teacher.to(accelerator.device)
    optimizer = create_optimizer_v2(student, opt="adamw", lr=recipe.learning_rate, weight_decay=0.01)
    targets = outputs_of(teacher, data.images)
    mix = mixing(teacher, targets.shape[1], recipe.cutmix) if recipe.cutmix else None

    def loss(module: nn.Module, rows: Tensor, _progress: float) -> Tensor:
        images, wanted, labels = (
            None if of is None else of[rows].to(accelerator.device) for of in (data.images, targets, data.labels)
        )
        assert images is not None and wanted is not None
        if mix is not None and labels is not None:
            images, labels, wanted = mix(images, labels)
        return distillation_loss(module(images), wanted, labels, recipe.distill)

    train(
        student,
        optimizer,
        len(data.images),
        recipe.course,
        loss=loss,
        checkpoint=checkpoint,
        after_epoch=after_epoch,
        accelerator=accelerator,
    )


def check_cutmix(cutmix: float, labelled: bool) -> None:
    """Raises: InvalidRequest for CutMix without labels."""
    if cutmix and not labelled:
        raise InvalidRequest(
            f"The request sets finetune.cutmix to {cutmix:g}. CutMix mixes labels, but the data set has no labels. Set"
            " finetune.cutmix to 0."
        )


def mixing(teacher: nn.Module, classes: int, alpha: float) -> Mix:
    """Return a function that applies CutMix; see `Mix`.

    alpha: of CutMix. The random numbers come from the generators that each epoch seeds.
    """
    mixup = Mixup(0.0, alpha, label_smoothing=0.0, num_classes=max(classes, 2))  # type: ignore[no-untyped-call]

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        even = len(images) - len(images) % 2  # Mixup mixes image i with n - i: the last of an odd number stays unmixed
        whole, certain = images[even:], functional.one_hot(labels[even:], max(classes, 2)).to(images)
        if even:
            mixed, shares = mixup(images[:even].clone(), labels[:even])
            images, certain = torch.cat([mixed, whole]), torch.cat([shares.to(images), certain])
        return images, certain, outputs_of(teacher, images).clone()

    return mix


def distillation_loss(outputs: Tensor, targets: Tensor, labels: Tensor | None, distill: float) -> Tensor:
    """Return cross-entropy + distill * KL(teacher || student), both averaged over images, at temperature 1.

    Without labels, it returns KL alone.
    outputs, targets: logits of student and teacher, (n, C). labels: (n,), or probabilities (n, C) for mixed images.
    """
    outputs, targets = class_logits(outputs), class_logits(targets)
    divergence = functional.kl_div(
        functional.log_softmax(outputs, 1), functional.log_softmax(targets, 1), reduction="batchmean", log_target=True
    )
    if labels is None:
        return divergence
    return functional.cross_entropy(outputs, labels) + distill * divergence
