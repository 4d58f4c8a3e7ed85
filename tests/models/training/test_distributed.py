"""Tests of fine-tuning in two processes on the CPU. It gives the same result as training in one process."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

import models.training.finetune
from models.data.dataset import Batch
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork
from models.training.distributed import Processes, in_processes
from models.training.finetune import Recipe, finetune, train_to_answer
from tests.support.networks import images_for, random_plan, small_network

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
RECIPE = Recipe(epochs=2, learning_rate=1e-3, batch=8, distill=1.0, seed=5)
IMAGES = 37
"""The last batch has five images, so one process gets more of them than the other."""


def networks() -> tuple[TorchNetwork, TorchNetwork, Batch]:
    teacher = small_network(depth=2, img_size=32)
    student = teacher.pruned(random_plan(teacher.structure, seed=2, tokens=False), None)
    images = images_for(teacher, IMAGES)
    return student, teacher, Batch(images, teacher.outputs(images).argmax(1).clone(), torch.arange(IMAGES))


def weights(network: Network) -> dict[str, Tensor]:
    return network.module.state_dict()


def test_two_processes_train_as_one_does_and_go_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, data = networks()
    alone: list[float] = []
    expected = finetune(
        student, teacher, data, RECIPE, checkpoint=tmp_path / "one.pt", after_epoch=lambda _, loss: alone.append(loss)
    )
    monkeypatch.setattr(models.training.finetune, "on_gpus", lambda: Processes(2, cpu=True))
    together: list[float] = []

    def stop_once(_epoch: int, loss: float) -> None:
        together.append(loss)
        if len(together) == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        finetune(student, teacher, data, RECIPE, checkpoint=tmp_path / "two.pt", after_epoch=stop_once)
    found = finetune(student, teacher, data, RECIPE, checkpoint=tmp_path / "two.pt", after_epoch=stop_once)
    answers = [network.outputs(data.images) for network in (student, expected, found)]
    # Compare outputs, not weights. The bias of a key has no effect, and Adam turns its rounding errors into steps.
    torch.testing.assert_close(answers[2], answers[1], rtol=0, atol=1e-4)
    assert float((answers[0] - answers[1]).abs().max()) > 0.1
    assert together == pytest.approx(alone, abs=1e-5)
    finished = finetune(student, teacher, data, RECIPE, checkpoint=tmp_path / "two.pt", after_epoch=stop_once)
    assert len(together) == 2 and not finished.module.training
    assert all(weights(finished)[name].equal(value) for name, value in weights(found).items())


def train_and_store(folder: Path, _after_epoch: object, accelerator: Accelerator) -> None:
    """Train and store, in each process. The function is at module level because it is sent to the processes."""
    student, teacher, data = networks()
    train_to_answer(
        student.module,
        teacher.module,
        data,
        RECIPE,
        checkpoint=folder / "c.pt",
        after_epoch=lambda *_: None,
        accelerator=accelerator,
    )
    torch.save(weights(student), folder / f"rank{accelerator.process_index}.pt")


def test_both_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    in_processes(Processes(2, cpu=True), train_and_store, (tmp_path,), lambda *_: None)
    one, other = (torch.load(tmp_path / f"rank{index}.pt") for index in (0, 1))
    assert all(other[name].equal(value) for name, value in one.items())
    untrained = weights(networks()[0])
    assert not one["head.weight"].equal(untrained["head.weight"])
