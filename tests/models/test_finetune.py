"""Fine-tuning learns from the teacher, leaves the network alone, and goes on after an interruption as if there was none."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.data import Batch
from models.evaluate import agreement
from models.finetune import Recipe, distillation_loss, finetune
from models.torch_network import TorchNetwork
from tests.models.networks import images_for, random_plan, small_network

RECIPE = Recipe(epochs=3, learning_rate=1e-3, batch=8, distill=1.0, seed=5)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The networks are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher() -> TorchNetwork:
    return small_network(depth=2, img_size=32)


@pytest.fixture(scope="module")
def student(teacher: TorchNetwork) -> TorchNetwork:
    """Pruned on every axis but tokens, with nothing recovered."""
    return teacher.pruned(random_plan(teacher.structure, seed=2, tokens=False), None)


@pytest.fixture(scope="module")
def data(teacher: TorchNetwork) -> Batch:
    images = images_for(teacher, 40)
    return Batch(images, teacher.outputs(images).argmax(1), torch.arange(40))


class Diary:
    """What training reports; `stop_after` an epoch it is interrupted, as by a cancel."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs: list[int] = []
        self.losses: list[float] = []
        self._stop_after = stop_after

    def __call__(self, epoch: int, loss: float) -> None:
        self.epochs.append(epoch)
        self.losses.append(loss)
        if epoch == self._stop_after:
            raise InterruptedError


def weights(network: TorchNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.module.state_dict().items()}


def test_training_brings_the_student_nearer_to_its_teacher(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    diary, recipe = Diary(), dataclasses.replace(RECIPE, epochs=8)
    trained = finetune(student, teacher, dataclasses.replace(data, labels=None), recipe, tmp_path / "c.pt", diary)
    target = teacher.outputs(data.images)
    assert agreement(target, trained.outputs(data.images)) > 0.7 * agreement(target, student.outputs(data.images))
    assert diary.epochs == list(range(1, 9)) and diary.losses[-1] < 0.7 * diary.losses[0]
    assert trained.structure == student.structure and trained.plan == student.plan
    assert not trained.module.training


def test_teacher_and_untrained_network_stay_as_they_were(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    before = [weights(teacher), weights(student)]
    trained = finetune(student, teacher, data, dataclasses.replace(RECIPE, epochs=1), tmp_path / "c.pt", Diary())
    for now, then in zip([weights(teacher), weights(student)], before, strict=True):
        assert all(now[name].equal(then[name]) for name in then)
    assert not weights(trained)["head.weight"].equal(before[1]["head.weight"])


@pytest.mark.parametrize("labelled", [True, False])
def test_an_interrupted_training_ends_with_the_same_weights(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path, labelled: bool
) -> None:
    data = data if labelled else dataclasses.replace(data, labels=None)
    undisturbed = finetune(student, teacher, data, RECIPE, tmp_path / "whole.pt", Diary())
    with pytest.raises(InterruptedError):
        finetune(student, teacher, data, RECIPE, tmp_path / "c.pt", Diary(stop_after=1))
    torch.manual_seed(99)  # another process
    rest = Diary()
    resumed = weights(finetune(student, teacher, data, RECIPE, tmp_path / "c.pt", rest))
    assert rest.epochs == [2, 3]
    for name, value in weights(undisturbed).items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6, msg=name)


def test_a_finished_training_is_not_repeated(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    first = weights(finetune(student, teacher, data, RECIPE, tmp_path / "c.pt", Diary()))
    diary = Diary()
    again = weights(finetune(student, teacher, data, RECIPE, tmp_path / "c.pt", diary))
    assert diary.epochs == [] and all(again[name].equal(first[name]) for name in first)


def test_the_seed_decides_the_order_of_images(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    one, other = (
        weights(finetune(student, teacher, data, dataclasses.replace(RECIPE, seed=s), tmp_path / f"{s}.pt", Diary()))
        for s in (1, 2)
    )
    assert not one["head.weight"].equal(other["head.weight"])


def test_the_loss_by_hand() -> None:
    """KL of (1/2, 1/2) to (1/4, 3/4) is ln 2 - ln(3)/2; cross-entropy of class 0 is ln 4."""
    student, teacher = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    divergence = torch.tensor(2.0).log() - torch.tensor(3.0).log() / 2
    unlabelled = distillation_loss(student, teacher, None, 7.0)
    labelled = distillation_loss(student, teacher, torch.tensor([0]), 0.5)
    torch.testing.assert_close(unlabelled, divergence)
    torch.testing.assert_close(labelled, torch.tensor(4.0).log() + 0.5 * divergence)


def test_the_loss_is_a_mean_over_images() -> None:
    outputs, targets, labels = torch.randn(6, 5), torch.randn(6, 5), torch.arange(6) % 5
    twice = [torch.cat([tensor, tensor]) for tensor in (outputs, targets, labels)]
    torch.testing.assert_close(distillation_loss(*twice, 1.0), distillation_loss(outputs, targets, labels, 1.0))
    same = distillation_loss(targets, targets, labels, 1.0)
    torch.testing.assert_close(same, functional.cross_entropy(targets, labels))
