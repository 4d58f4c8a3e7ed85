"""The training loop: epochs with a warm-up and a cosine schedule, and a checkpoint after each epoch.

The caller provides the loss.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models import throttle as pace
from models.atomic_write import replacing

WARMUP_SHARE = 0.05
MAX_NORM = 1.0
"""Largest norm of the gradient in one step; a larger gradient is clipped."""


OTHER_PROCESS = 15485863
"""Difference between the random seeds of consecutive processes of one training."""

Loss = Callable[[nn.Module, Tensor, float], Tensor]
"""(module, indices of the images, progress in [0, 1) over the whole training) -> loss, averaged over these images."""


@dataclass(frozen=True)
class Course:
    """The length of a training. batch: images per step, over all processes. seed: for the order of the images."""

    epochs: int
    batch: int
    seed: int


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: int,
    course: Course,
    *,
    loss: Loss,
    checkpoint: Path,
    after_epoch: Callable[[int, float], None],
    accelerator: Accelerator | None = None,
) -> None:
    """Train `module` in place.

    optimizer: the learning rate of each parameter group is the highest one of its schedule.
    images: number of images.
    after_epoch: called with (epoch, mean loss). It may raise to stop the training. The checkpoint is then kept, and the
    next call continues after the last stored epoch.
    accelerator: the device and the processes, each of which calls this function; None: this process, on the CPU.

    The order of the images in an epoch depends only on the seed and the epoch, so a resumed training gives the same
    result.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    accelerator = accelerator or Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(module, optimizer)
    try:
        for epoch in range(_resume(checkpoint, module, optimizer), course.epochs):
            mean = _train_epoch(
                accelerator, prepared, optimizer, rates, images=images, course=course, loss=loss, epoch=epoch
            )
            if accelerator.is_main_process:
                _save(checkpoint, module, optimizer, epoch + 1)
                after_epoch(epoch + 1, mean)
    finally:
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        accelerator.free_memory()
    module.eval()


def _train_epoch(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    *,
    images: int,
    course: Course,
    loss: Loss,
    epoch: int,
) -> float:
    """Train one epoch. Each batch is divided among the processes. Return the mean loss over all images."""
    module.train()
    seed = course.seed * 10007 + epoch
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed + OTHER_PROCESS * accelerator.process_index)
    np.random.seed((seed + OTHER_PROCESS * accelerator.process_index) % 2**32)  # timm's CutMix uses numpy's generator
    steps = math.ceil(images / course.batch)
    total = 0.0
    for step, batch in enumerate(order.split(course.batch)):
        progress = (epoch + step / steps) / course.epochs
        _set_learning_rates(optimizer, rates, progress)
        rows, weight = _own(batch, accelerator)
        with pace.step():
            accelerator.wait_for_everyone()  # only the main process takes turns with other work on this machine
            found = loss(module, rows, progress)
            optimizer.zero_grad()
            accelerator.backward(found * weight)
            accelerator.clip_grad_norm_(module.parameters(), MAX_NORM)
            optimizer.step()
        total += float(found.detach()) * len(batch) * weight
    return (
        float(accelerator.reduce(torch.tensor(total, dtype=torch.float64, device=accelerator.device), "mean")) / images
    )


def _own(batch: Tensor, accelerator: Accelerator) -> tuple[Tensor, float]:
    """Return this process's share of a batch, and the weight of its loss.

    With this weight, the mean over the processes equals the mean over the whole batch. A batch with fewer images than
    processes is not divided: each process then computes all of it.
    """
    processes = accelerator.num_processes
    if len(batch) < processes:
        return batch, 1.0
    rows = batch[accelerator.process_index :: processes]
    return rows, len(rows) * processes / len(batch)


def _set_learning_rates(optimizer: torch.optim.Optimizer, rates: list[float], progress: float) -> None:
    """Set the learning rates: a linear warm-up, then half a cosine period down to zero.

    rates: highest learning rate of each group. progress: in [0, 1) over the whole training.
    """
    if progress < WARMUP_SHARE:
        share = (progress + 1e-3) / WARMUP_SHARE
    else:
        share = 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * min(share, 1.0)


def _resume(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint if it exists. Return the number of finished epochs."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epochs"])


def finished_epochs(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True, map_location="cpu")["epochs"]) if checkpoint.exists() else 0


def load_trained(checkpoint: Path, module: nn.Module) -> None:
    """Load the weights that another process has trained."""
    module.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu")["module"])
    module.eval()


def _save(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epochs}
    # torch gets an open file, because with a path it would end the process when the disk is full
    with replacing(checkpoint) as beside, beside.open("wb") as file:
        torch.save(state, file)
