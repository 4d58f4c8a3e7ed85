"""Tests of jobs that fine-tune the network that they deliver."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.errors import Canceled
from models.evaluation.metrics import agreement
from models.export.onnx_export import run_onnx
from models.loading.load_model import open_model
from models.structure import Plan
from service.jobs.journal import MemoryJournal
from tests.support.small_jobs import (
    SPLITS,
    Ran,
    Workshop,
    budget,
    random_images,
)

TEST_ROWS, TRAIN_ROWS = (np.array(SPLITS) == name for name in ("test", "calibration"))


pytestmark = pytest.mark.usefixtures("brief")


TRAINING = {"epochs": 4, "learning_rate": 1e-3, "batch": 8, "distill": 20}


@pytest.fixture(scope="module")
def trained(workshop: Workshop) -> Ran:
    return workshop.run(budget("macs_keep", 0.5), trials=2, recovery=False, finetune=TRAINING)


def test_what_is_reported_and_delivered_is_the_trained_network(workshop: Workshop, trained: Ran) -> None:
    dense = open_model(workshop.model)
    untrained = dense.pruned(Plan.from_json(trained.json("plan.json")), None)  # recovery is off
    seen, held_out = random_images()[TRAIN_ROWS], random_images()[TEST_ROWS]
    answers = run_onnx(trained.path("model.onnx"), seen, 1)
    assert agreement(dense.outputs(seen), answers) > agreement(dense.outputs(seen), untrained.outputs(seen)) + 0.05
    answers, target = run_onnx(trained.path("model.onnx"), held_out, 1), dense.outputs(held_out)
    report = trained.report
    assert report["delivered"]["correct"] == int((answers.argmax(1) == target.argmax(1)).sum())
    assert report["agreement"]["score"] == pytest.approx(agreement(target, answers), rel=1e-3)
    assert report["agreement"]["score"] != pytest.approx(agreement(target, untrained.outputs(held_out)), rel=1e-2)
    assert "finetuning" in trained.journal.stages


@pytest.mark.slow
def test_a_training_that_made_it_worse_is_not_delivered(workshop: Workshop) -> None:
    """A learning rate that destroys the network: what was there before is delivered, and the report says so."""
    ruinous = TRAINING | {"epochs": 1, "learning_rate": 1.0}
    ran = workshop.run(budget("macs_keep", 0.7), trials=2, finetune=ruinous)
    dense, held_out = open_model(workshop.model), random_images()[TEST_ROWS]
    answers = run_onnx(ran.path("model.onnx"), held_out, 1)
    assert agreement(dense.outputs(held_out), answers) > -0.5
    assert any("Fine-tuning made the network worse" in warning for warning in ran.report["warnings"])


class StopsBetweenEpochs(MemoryJournal):
    """Cancels once there is a checkpoint of an epoch."""

    work: Path | None = None

    def check(self) -> None:
        if self.work is not None and list(self.work.glob("finetune-*.pt")):
            self.cancel()
        super().check()


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_weights(workshop: Workshop, trained: Ran) -> None:
    files, stopped = workshop.files(), StopsBetweenEpochs()
    stopped.work = files.work
    options: dict[str, Any] = {"trials": 2, "recovery": False, "finetune": TRAINING}
    with pytest.raises(Canceled):
        workshop.run(budget("macs_keep", 0.5), journal=stopped, files=files, **options)
    (checkpoint,) = files.work.glob("finetune-*.pt")
    assert torch.load(checkpoint, weights_only=True)["epochs"] == 1
    again = workshop.run(budget("macs_keep", 0.5), journal=MemoryJournal(rows=stopped.rows), files=files, **options)
    mine, undisturbed = (load_file(ran.path("pruned.safetensors")) for ran in (again, trained))
    for name, value in undisturbed.items():
        torch.testing.assert_close(mine[name], value, msg=name)
