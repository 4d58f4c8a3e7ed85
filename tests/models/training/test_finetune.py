"""Tests of fine-tuning.

The student learns from the teacher, and the given network does not change. An interrupted training resumes with the
same result.
"""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn import functional

from models.data.dataset import Batch
from models.errors import InvalidRequest
from models.evaluation.metrics import agreement
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork
from models.training.finetune import Recipe, distillation_loss, finetune, mixing
from tests.support.networks import images_for, random_plan, small_network

RECIPE = Recipe(epochs=3, learning_rate=1e-3, batch=8, distill=1.0, seed=5)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher() -> TorchNetwork:
    return small_network(depth=2, img_size=32)


@pytest.fixture(scope="module")
def student(teacher: TorchNetwork) -> TorchNetwork:
    """A network that is pruned on every axis except tokens, without recovery."""
    return teacher.pruned(random_plan(teacher.structure, seed=2, tokens=False), None)


@pytest.fixture(scope="module")
def data(teacher: TorchNetwork) -> Batch:
    images = images_for(teacher, 40)
    return Batch(images, teacher.outputs(images).argmax(1), torch.arange(40))


class Diary:
    """A record of what training reports.

    `stop_after`: the epoch after which it interrupts the training, as a cancel does.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs: list[int] = []
        self.losses: list[float] = []
        self._stop_after = stop_after

    def __call__(self, epoch: int, loss: float) -> None:
        self.epochs.append(epoch)
        self.losses.append(loss)
        if epoch == self._stop_after:
            raise InterruptedError


def weights(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.module.state_dict().items()}


def test_training_brings_the_student_nearer_to_its_teacher(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    diary, recipe = Diary(), dataclasses.replace(RECIPE, epochs=8)
    trained = finetune(
        student,
        teacher,
        dataclasses.replace(data, labels=None),
        recipe,
        checkpoint=tmp_path / "c.pt",
        after_epoch=diary,
    )
    target = teacher.outputs(data.images)
    assert agreement(target, trained.outputs(data.images)) > 0.7 * agreement(target, student.outputs(data.images))
    assert diary.epochs == list(range(1, 9)) and diary.losses[-1] < 0.7 * diary.losses[0]
    assert trained.structure == student.structure and trained.plan == student.plan
    assert not trained.module.training


def test_teacher_and_untrained_network_stay_as_they_were(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    before = [weights(teacher), weights(student)]
    trained = finetune(
        student, teacher, data, dataclasses.replace(RECIPE, epochs=1), checkpoint=tmp_path / "c.pt", after_epoch=Diary()
    )
    for now, then in zip([weights(teacher), weights(student)], before, strict=True):
        assert all(now[name].equal(then[name]) for name in then)
    assert not weights(trained)["head.weight"].equal(before[1]["head.weight"])


@pytest.mark.parametrize("labelled", [True, False])
def test_an_interrupted_training_ends_with_the_same_weights(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path, labelled: bool
) -> None:
    data = data if labelled else dataclasses.replace(data, labels=None)
    undisturbed = finetune(student, teacher, data, RECIPE, checkpoint=tmp_path / "whole.pt", after_epoch=Diary())
    with pytest.raises(InterruptedError):
        finetune(student, teacher, data, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=Diary(stop_after=1))
    torch.manual_seed(99)  # another process
    rest = Diary()
    resumed = weights(finetune(student, teacher, data, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=rest))
    assert rest.epochs == [2, 3]
    for name, value in weights(undisturbed).items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6, msg=name)


def test_a_finished_training_is_not_repeated(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    first = weights(finetune(student, teacher, data, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=Diary()))
    diary = Diary()
    again = weights(finetune(student, teacher, data, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=diary))
    assert diary.epochs == [] and all(again[name].equal(first[name]) for name in first)


def test_the_seed_decides_the_order_of_images(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    one, other = (
        weights(
            finetune(
                student,
                teacher,
                data,
                dataclasses.replace(RECIPE, seed=s),
                checkpoint=tmp_path / f"{s}.pt",
                after_epoch=Diary(),
            )
        )
        for s in (1, 2)
    )
    assert not one["head.weight"].equal(other["head.weight"])


def test_on_the_cpu_the_recipe_is_this_plain_loop(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    """Compare with a training loop that is written out, to the last bit.

    No reduced precision, process or wrapper of another library changes the result.
    """
    assert data.labels is not None
    module, targets = copy.deepcopy(student.module).train(), teacher.outputs(data.images)
    optimizer = create_optimizer_v2(module, opt="adamw", lr=RECIPE.learning_rate, weight_decay=0.01)
    steps, step = RECIPE.epochs * 5, 0
    for epoch in range(RECIPE.epochs):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(RECIPE.seed * 10007 + epoch))
        for rows in order.split(RECIPE.batch):
            done, step = step / steps, step + 1
            fall = 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = RECIPE.learning_rate * (
                min(1.0, (done + 1e-3) / 0.05) if done < 0.05 else min(1.0, fall)
            )
            optimizer.zero_grad()
            distillation_loss(module(data.images[rows]), targets[rows], data.labels[rows], RECIPE.distill).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
    found = weights(finetune(student, teacher, data, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=Diary()))
    assert all(found[name].equal(value) for name, value in module.state_dict().items())


def test_the_loss_by_hand() -> None:
    """KL of (1/2, 1/2) to (1/4, 3/4) is ln 2 - ln(3)/2. The cross-entropy of class 0 is ln 4."""
    student, teacher = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    divergence = torch.tensor(2.0).log() - torch.tensor(3.0).log() / 2
    unlabelled = distillation_loss(student, teacher, None, 7.0)
    labelled = distillation_loss(student, teacher, torch.tensor([0]), 0.5)
    torch.testing.assert_close(unlabelled, divergence)
    torch.testing.assert_close(labelled, torch.tensor(4.0).log() + 0.5 * divergence)


def test_the_loss_is_a_mean_over_images() -> None:
    outputs, targets, labels = torch.randn(6, 5), torch.randn(6, 5), torch.arange(6) % 5
    twice = [torch.cat([tensor, tensor]) for tensor in (outputs, targets, labels)]
    torch.testing.assert_close(
        distillation_loss(twice[0], twice[1], twice[2], 1.0), distillation_loss(outputs, targets, labels, 1.0)
    )
    same = distillation_loss(targets, targets, labels, 1.0)
    torch.testing.assert_close(same, functional.cross_entropy(targets, labels))


MIXED = dataclasses.replace(RECIPE, cutmix=0.5, distill=0.2)


def test_cutmix_goes_on_after_an_interruption_as_if_there_was_none(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    """Check this also with an odd batch at the end."""
    assert data.labels is not None
    data = Batch(data.images[:37], data.labels[:37], data.indices[:37])
    undisturbed = finetune(student, teacher, data, MIXED, checkpoint=tmp_path / "whole.pt", after_epoch=Diary())
    with pytest.raises(InterruptedError):
        finetune(student, teacher, data, MIXED, checkpoint=tmp_path / "c.pt", after_epoch=Diary(stop_after=2))
    np.random.seed(3)  # another process
    resumed = weights(finetune(student, teacher, data, MIXED, checkpoint=tmp_path / "c.pt", after_epoch=Diary()))
    for name, value in weights(undisturbed).items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6, msg=name)


def test_labels_are_mixed_as_the_pixels_are_and_the_teacher_sees_the_mixture(teacher: TorchNetwork) -> None:
    """Image i has the constant value i, so its pixels show how much of its partner it contains.

    The label must give the same share. With an odd number of images, the last one is not mixed.
    """
    images, labels = torch.arange(7.0)[:, None, None, None].expand(-1, 3, 32, 32), torch.arange(7)
    seen = []
    for draw in range(6):
        np.random.seed(draw)  # as an epoch of a training does
        mixed, shares, answers = mixing(teacher.module, 7, MIXED.cutmix)(images, labels)
        shown = torch.stack([(mixed[:, 0] == value).float().mean((1, 2)) for value in range(7)], dim=1)
        torch.testing.assert_close(shares, shown, rtol=0, atol=1e-5)
        torch.testing.assert_close(answers, teacher.outputs(mixed))
        seen.append(shares)
    assert all(share[6, 6] == 1 for share in seen)
    assert any(0.05 < float(share[0, 0]) < 0.95 for share in seen)
    assert not seen[0].equal(seen[1])


def test_cutmix_without_labels_is_refused(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=r"the data set has no labels. Set finetune\.cutmix to 0"):
        finetune(
            student,
            teacher,
            dataclasses.replace(data, labels=None),
            MIXED,
            checkpoint=tmp_path / "c.pt",
            after_epoch=Diary(),
        )


def test_mixed_labels_count_by_their_share() -> None:
    """The labels (1/4, 3/4) equal the student's answer, so the cross-entropy is the entropy of the answer."""
    answer = torch.tensor([[1.0, 3.0]]).log()
    loss = distillation_loss(answer, answer, torch.tensor([[0.25, 0.75]]), 0.2)
    torch.testing.assert_close(loss, -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log()))
