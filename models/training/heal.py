"""Heals a pruned network: gradient descent on unlabelled images until its internal states are those of the dense one.

The loss compares the residual stream after each block, token by token, and the outputs:
    mean over blocks of |x - x_dense|^2 / var(x_dense)  +  distance of the outputs
Tokens that the pruned network has removed or fused are left out. The distance of the outputs is KL(dense || pruned)
for a classifier, and the relative squared distance of the features for any other network. A target for each block says
more about an image than its output alone, so some hundred steps are enough. STARFISH (arXiv 2606.01126) heals in the
same way.
"""

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.networks.network import Network
from models.pruning.pruned_blocks import row_of_blocks
from models.pruning.token_reduction import TokenState
from models.structure import identity
from models.training.finetune import distillation_loss
from models.training.loop import Course, train

EPOCH_STEPS = 25
"""Steps between two checkpoints."""
SMALLEST_SIZE = 1e-3
"""The steps of a tensor are relative to its size, but never to a size below this. Zeros must move too."""


@dataclass(frozen=True)
class Healing:
    """Settings.

    learning_rate: the highest one of the schedule, relative to the root mean square of each tensor. batch: images per
    step.
    """

    steps: int
    learning_rate: float
    batch: int
    seed: int

    @property
    def course(self) -> Course:
        return Course(math.ceil(self.steps / EPOCH_STEPS), self.batch, self.seed)


def heal(
    network: Network,
    dense: Network,
    images: Tensor,
    healing: Healing,
    *,
    checkpoint: Path,
    after_epoch: Callable[[int, float], None],
) -> Network:
    """Return a healed copy of `network`. The steps are rounded up to a multiple of `EPOCH_STEPS`.

    dense: the network that this one was pruned from. images: (n, C, H, W).
    after_epoch: called with (number of checkpoints, mean loss). It may raise to stop; the checkpoint is then kept, and
    the next call continues from it.
    """
    healed = network.with_module(copy.deepcopy(network.module))
    teacher = _undivided(dense) if network.recovers_in_sequence else dense.module
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher, each = teacher.to(device), EPOCH_STEPS * healing.batch
    blocks = _sources(network) if network.recovers_in_sequence else None

    def loss(module: nn.Module, rows: Tensor, progress: float) -> Tensor:
        epoch = int(progress * healing.course.epochs + 1e-9)
        chosen = images[(epoch * each + rows) % len(images)].to(device)
        if blocks is None:
            with torch.inference_mode():
                wanted = teacher(chosen)
            return output_distance(module(chosen), wanted.clone(), dense.structure.classes)
        with torch.no_grad(), Streams(teacher) as target:
            wanted = teacher(chosen)
        with Streams(module) as streams:
            outputs = module(chosen)
        apart = [
            stream.distance(target.after[source], columns)
            for stream, (source, columns) in zip(streams.after, blocks, strict=True)
        ]
        return torch.stack(apart).mean() + output_distance(outputs, wanted, dense.structure.classes)

    train(
        healed.module,
        _optimizer(healed.module, healing.learning_rate),
        each,
        healing.course,
        loss=loss,
        checkpoint=checkpoint,
        after_epoch=after_epoch,
        accelerator=Accelerator(cpu=device.type == "cpu"),
    )
    healed.module.cpu()
    return healed


def _optimizer(module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return an optimiser whose steps are relative to the size of each tensor, as in Adafactor (arXiv 1804.04235).

    The steps of Adam have the size of the learning rate. Layers that hold a small layer scale would be destroyed by
    steps that are right for the other layers.
    """
    with torch.no_grad():
        groups = [
            {"params": [tensor], "lr": learning_rate * max(float(tensor.square().mean().sqrt()), SMALLEST_SIZE)}
            for tensor in module.parameters()
        ]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def output_distance(outputs: Tensor, wanted: Tensor, classes: int) -> Tensor:
    """Return the distance of the outputs: KL(wanted || outputs) of class scores, or the relative squared distance.

    outputs, wanted: (n, C). classes: 0 if the outputs are features.
    """
    if not classes:
        return ((outputs - wanted) ** 2).sum() / (wanted**2).sum().clamp(min=1e-12)
    return distillation_loss(outputs, wanted, labels=None, distill=1.0)


@dataclass(frozen=True)
class Stream:
    """The residual stream after one block.

    x: (B, N', D). places: (B, K), the remaining patch tokens, as in `TokenState`; None: all are there, in their order.
    prefix: number of tokens before the patches.
    """

    x: Tensor
    places: Tensor | None
    prefix: int

    def distance(self, dense: "Stream", columns: Tensor) -> Tensor:
        """Return the mean squared distance from the stream of a dense network, relative to the variance of that one.

        columns: the dims of the dense stream that this one has, (D,).
        """
        x, wanted = self.x, dense.x
        if self.places is not None:
            batch, kept = self.places.shape
            before = torch.arange(self.prefix, device=x.device).expand(batch, -1)
            index = torch.cat([before, self.prefix + self.places], dim=1).unsqueeze(-1)
            x, wanted = x[:, : self.prefix + kept], wanted.gather(1, index.expand(-1, -1, wanted.shape[-1]))
        wanted = wanted[..., columns]
        variance = (wanted - wanted.mean((0, 1))).square().mean().clamp(min=1e-12)
        return (x - wanted).square().mean() / variance


class Streams:
    """Records the stream after each block of a pruned network inside a `with` block."""

    def __init__(self, module: nn.Module) -> None:
        self._row = row_of_blocks(module)
        self._hooks = ExitStack()
        self.after: list[Stream] = []

    def __enter__(self) -> Self:
        for block in self._row.blocks():
            self._hooks.callback(block.register_forward_hook(self._record).remove)
        return self

    def __exit__(self, *_error: object) -> None:
        self._hooks.close()

    def _record(self, _block: nn.Module, inputs: tuple[Tensor, TokenState], x: Tensor) -> None:
        self.after.append(Stream(x, inputs[1].places, self._row.prefix))


def _undivided(dense: Network) -> nn.Module:
    """Return the dense network with the same kind of blocks as a pruned one."""
    return dense.pruned(identity(dense.structure), None).module


def _sources(network: Network) -> list[tuple[int, Tensor]]:
    """Return for each block of a pruned network its place in the dense one, and the dims of its stream."""
    assert network.plan is not None
    width = torch.tensor(network.plan.embed)
    return [(block.source, width) for block in network.plan.blocks]
