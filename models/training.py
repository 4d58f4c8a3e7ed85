"""Epochs over images with warm-up and cosine, each stored when it ends; what is minimised is the caller's."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import pace

WARMUP_SHARE = 0.05
MAX_NORM = 1.0
"""Of the gradient of one step."""


Loss = Callable[[Tensor, float], Tensor]
"""(rows of the images, progress in [0, 1) over the whole training) -> the loss, a mean over these images."""


@dataclass(frozen=True)
class Course:
    """How often the images are seen, how many at a time, and the seed of their order."""

    epochs: int
    batch: int
    seed: int


def train(
    module: nn.Module, optimizer: torch.optim.Optimizer, images: int, course: Course, loss: Loss,
    checkpoint: Path, after_epoch: Callable[[int, float], None],
) -> None:  # fmt: skip
    """Trains `module` in place. after_epoch(epoch, mean loss) may raise to stop; the checkpoint
    then stays, and the next call goes on behind it. Each group of the optimizer brings its highest learning rate.

    The order of images in an epoch depends on the seed and the epoch alone, so a resumed training is the same training.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for epoch in range(_resume(checkpoint, module, optimizer), course.epochs):
        mean = _train_epoch(module, optimizer, rates, images, course, loss, epoch)
        _save(checkpoint, module, optimizer, epoch + 1)
        after_epoch(epoch + 1, mean)
    module.eval()


def _train_epoch(
    module: nn.Module, optimizer: torch.optim.Optimizer, rates: list[float], images: int, course: Course,
    loss: Loss, epoch: int,
) -> float:  # fmt: skip
    module.train()
    order = torch.randperm(images, generator=torch.Generator().manual_seed(course.seed * 10007 + epoch))
    torch.manual_seed(course.seed * 10007 + epoch)
    np.random.seed((course.seed * 10007 + epoch) % 2**32)  # timm's CutMix draws from numpy's global generator
    steps = math.ceil(images / course.batch)
    total = 0.0
    for step, rows in enumerate(order.split(course.batch)):
        progress = (epoch + step / steps) / course.epochs
        _set_learning_rates(optimizer, rates, progress)
        with pace.step():
            found = loss(rows, progress)
            optimizer.zero_grad()
            found.backward()
            nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
            optimizer.step()
        total += float(found.detach()) * len(rows)
    return total / images


def _set_learning_rates(optimizer: torch.optim.Optimizer, rates: list[float], progress: float) -> None:
    """Linear warm-up, then a half cosine to zero. progress in [0, 1) over the whole training."""
    if progress < WARMUP_SHARE:
        share = (progress + 1e-3) / WARMUP_SHARE
    else:
        share = 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * min(share, 1.0)


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
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epochs}
    with beside.open("wb") as file:  # given a path, torch would end the process on a full disk
        torch.save(state, file)
    os.replace(beside, checkpoint)
