"""Tests of a complete job of method vtp.

The job trains gates and removes inputs and neurons. The delivered file agrees with PyTorch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.errors import Canceled, InvalidRequest
from models.evaluation.metrics import agreement
from models.export.onnx_export import run_onnx
from models.loading.load_model import open_model
from models.structure import Plan
from service.jobs.journal import MemoryJournal
from service.pipeline import validate_job as validate
from tests.support.small_jobs import SPLITS, Ran, Workshop, budget, data_folder, model_folder, random_images

TEST_ROWS = np.array(SPLITS) == "test"
GATES = {"epochs": 3, "l1": 1e-3, "gate_learning_rate": 0.03, "batch": 8}
OPTIONS: dict[str, Any] = {"method": "vtp", "trials": 1, "gates": GATES}


pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    root = tmp_path_factory.mktemp("workshop")
    model = model_folder(root / "model", depth=2)
    return Workshop(root, model, data_folder(root / "data", model))


@pytest.fixture(scope="module")
def ran(workshop: Workshop) -> Ran:
    return workshop.run(budget("macs_keep", 0.75), finetune={"epochs": 1, "batch": 8}, **OPTIONS)


def test_the_budget_is_met_by_inputs_and_neurons_alone(workshop: Workshop, ran: Ran) -> None:
    original, plan = open_model(workshop.model).structure, Plan.from_json(ran.json("plan.json"))
    left = plan.apply_to(original)
    assert 0.7 < left.macs / original.macs <= 0.75
    assert ran.report["delivered"]["macs"] == left.macs
    assert {row["axis"] for row in ran.report["axes"]} == {"inputs", "neurons"}
    stored = load_file(ran.path("pruned.safetensors"))
    for place, block in enumerate(left.blocks):
        assert block.attention is not None and block.attention.heads == 3
        assert stored[f"blocks.{place}.attention.qkv.weight"].shape == (144, block.attention.inputs)
        assert ran.report["blocks"][place]["inputs"][0] < ran.report["blocks"][place]["inputs"][1] == 144


def test_the_delivered_file_agrees_with_pytorch(workshop: Workshop, ran: Ran) -> None:
    module = open_model(workshop.model).pruned(Plan.from_json(ran.json("plan.json")), None).module
    module.load_state_dict(load_file(ran.path("pruned.safetensors")))
    images = random_images()[TEST_ROWS]
    with torch.inference_mode():
        torch.testing.assert_close(run_onnx(ran.path("model.onnx"), images, 1), module(images), rtol=1e-3, atol=1e-3)
    assert ran.report["parity"]["passed"]


def test_the_original_stays_what_everything_is_compared_to(workshop: Workshop, ran: Ran) -> None:
    images, dense = random_images()[TEST_ROWS], open_model(workshop.model)
    target = dense.outputs(images)
    torch.testing.assert_close(run_onnx(ran.path("original.onnx"), images, 1), target, rtol=1e-3, atol=1e-3)
    assert ran.report["original"]["correct"] == 40  # the original itself gave the labels
    answers = run_onnx(ran.path("model.onnx"), images, 1)
    assert ran.report["agreement"]["score"] == pytest.approx(agreement(target, answers), rel=1e-3)
    assert ran.json("manifest.json")["original_structure"] == dense.structure.key


def test_what_is_pruned_is_the_network_that_was_trained_with_its_gates(workshop: Workshop) -> None:
    """The budget is above the cost of the original, so the job removes and recovers nothing.

    Only the folded gates differ from the original.
    """
    files = workshop.files()
    whole = workshop.run(budget("macs_keep", 1.5), files=files, **OPTIONS)
    stored, dense = load_file(whole.path("pruned.safetensors")), open_model(workshop.model).module.state_dict()
    gates = torch.load(files.work / "gates.pt", weights_only=True)["module"]
    gate, weight = gates["blocks.1.mlp.fc2.gate"], gates["blocks.1.mlp.fc2.linear.weight"]
    torch.testing.assert_close(stored["blocks.1.mlp.fc2.weight"], weight * gate)
    assert (gate < 0.9).any() and not stored["blocks.1.mlp.fc2.weight"].allclose(dense["blocks.1.mlp.fc2.weight"], 1e-2)
    assert any("training of its gates" in note for note in whole.report["warnings"])


class StopsBetweenEpochs(MemoryJournal):
    """A journal that cancels the job when the checkpoint of an epoch exists."""

    work: Path | None = None

    def check(self) -> None:
        if self.work is not None and (self.work / "gates.pt").exists():
            self.cancel()
        super().check()


@pytest.mark.slow
def test_an_interrupted_training_of_gates_goes_on(workshop: Workshop, ran: Ran) -> None:
    files, stopped = workshop.files(), StopsBetweenEpochs()
    stopped.work = files.work
    with pytest.raises(Canceled):
        workshop.run(budget("macs_keep", 0.75), journal=stopped, files=files, **OPTIONS)
    assert stopped.stages[-1] == "ranking" and stopped.last_progress is not None
    assert torch.load(files.work / "gates.pt", weights_only=True)["epochs"] == 1
    again = workshop.run(budget("macs_keep", 0.75), files=files, **OPTIONS)
    assert again.json("plan.json") == ran.json("plan.json")


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (True, {"method": "vtp"}, "gates.epochs to 1 or more"),
        (False, {"method": "vtp", "gates": {"epochs": 2}}, "needs a data set"),
        (True, {"method": "mdc", "gates": {"epochs": 2}}, "'mdc' has no gates"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_work(
    workshop: Workshop, data: bool, options: dict[str, Any], says: str
) -> None:
    shop = workshop if data else Workshop(workshop.root / "none", workshop.model, None)
    journal = MemoryJournal()
    with pytest.raises(InvalidRequest, match=says):
        shop.run(budget("macs_keep", 0.75), journal=journal, **options)
    assert journal.stages == ["validating"]
    document = {"model": "m", "dataset": "d" if data else None, "budgets": [budget("macs_keep", 0.75)], **options}
    with pytest.raises(InvalidRequest, match=says):
        validate.describe_job(document, shop.model, shop.dataset, [])


def test_a_network_without_classes_has_nothing_to_train_gates_by(workshop: Workshop) -> None:
    model = model_folder(workshop.root / "features" / "model", depth=1, num_classes=0)
    shop = Workshop(workshop.root / "features", model, data_folder(workshop.root / "features" / "data", None))
    with pytest.raises(InvalidRequest, match="needs a classifier"):
        shop.run(budget("macs_keep", 0.75), **OPTIONS)
