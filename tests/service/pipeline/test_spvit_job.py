"""Tests of a complete job of method "spvit".

The search finds the tokens with another score, and then the job trains selectors. It delivers one ONNX file that agrees
with PyTorch.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.errors import Canceled, InvalidRequest
from models.export.onnx_export import run_onnx
from models.loading.load_model import open_model
from models.networks.dynamic_tokens import check_dynamic
from models.structure import Plan
from service.jobs.journal import MemoryJournal
from service.pipeline.validate_job import describe_job
from tests.support.small_jobs import Ran, Workshop, budget, data_folder, delivered_network, job_request, model_folder

SPVIT: dict[str, Any] = {
    "method": "spvit",
    "trials": 2,
    "finetune": {"epochs": 3, "learning_rate": 1e-3, "batch": 16},
}


pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture(scope="module")
def ran(workshop: Workshop) -> Ran:
    return workshop.run(budget("macs_keep", 0.75), **SPVIT)


@pytest.mark.slow
def test_the_delivered_network_chooses_by_trained_selectors_within_the_budget(ran: Ran) -> None:
    plan, original = Plan.from_json(ran.json("plan.json")), open_model(ran.files.model)
    tokens = [block.tokens for block in plan.blocks if block.tokens is not None]
    assert tokens and {(t.score, t.reducer, t.at) for t in tokens} == {("selector", "weighted", "start")}
    small = original.pruned(plan, None)
    assert 0.5 * original.structure.macs < small.structure.macs <= 0.75 * original.structure.macs
    assert ran.report["delivered"]["macs"] == small.structure.macs
    trained, untrained = load_file(ran.path("pruned.safetensors")), small.module.state_dict()
    assert trained.keys() == untrained.keys()
    learnt = [name for name in trained if "selector" in name]
    assert learnt and not any(trained[name].equal(untrained[name]) for name in learnt)


@pytest.mark.slow
def test_the_file_agrees_with_pytorch(ran: Ran) -> None:
    small = open_model(ran.files.model).pruned(Plan.from_json(ran.json("plan.json")), None)
    small.module.load_state_dict(load_file(ran.path("pruned.safetensors")))
    assert ran.report["parity"]["passed"] and ran.report["parity"]["forced"]["max_relative"] < 1e-3
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    answers = run_onnx(ran.path("model.onnx"), images, 1)
    torch.testing.assert_close(answers, small.outputs(images), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_dynamic_form_is_delivered_and_described(ran: Ran) -> None:
    small = delivered_network(ran)
    small.module.load_state_dict(load_file(ran.path("pruned.safetensors")))
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert check_dynamic(small, ran.path("model.dynamic-tokens.onnx"), images).passed
    described = ran.report["dynamic_tokens"]
    assert described["parity"]["max_relative"] < 1e-3 and len(described["kept_tokens"]) == len(small.reductions())
    assert all(1 <= stage["least"] <= stage["mean"] <= stage["most"] <= 16 for stage in described["kept_tokens"])
    assert "model.dynamic-tokens.onnx" in ran.json("manifest.json")["files"]
    assert described["predicted"] == []  # the job has no latency budget


@pytest.mark.slow
def test_a_latency_budget_gives_the_dynamic_form_a_mean_and_a_p95(workshop: Workshop) -> None:
    """Limit the MACs, because a small network gains no latency on this device, whose operations are expensive."""
    budgets = budget("macs_keep", 0.75), budget("latency_keep", 1.5, device="generic-mobile")
    ran = workshop.run(*budgets, **SPVIT)
    (predicted,) = ran.report["dynamic_tokens"]["predicted"]
    assert predicted["device"] == "generic-mobile" and 0 < predicted["mean_ms"] <= 1.000001 * predicted["p95_ms"]


@pytest.mark.slow
def test_a_budget_on_the_p95_over_images_is_met_by_measurement(workshop: Workshop) -> None:
    """The latency budget is far above the need of this small network.

    The test only checks that the job measured the dynamic form for the budget.
    """
    limit = budget("latency_keep", 3.0) | {"statistic": "p95"}
    ran = workshop.run(budget("macs_keep", 0.75), limit, **SPVIT)
    (row,) = [row for row in ran.report["budgets"] if row["statistic"] == "p95"]
    (found,) = ran.report["dynamic_tokens"]["measured"]
    assert row["met"] and row["share"] == pytest.approx(found["p95_ratio"]["high"] / 3.0)
    assert 0 < found["mean_ms"]["value"] <= found["p95_ms"]["value"]
    assert "p95 over images" in row["text"] and ran.result.guarantee == "measured"


@pytest.mark.slow
def test_trials_are_scored_by_attention_and_priced_with_selectors(ran: Ran, workshop: Workshop) -> None:
    """Trials use attention scores, because untrained selectors would choose at random.

    The prices include the selectors from the first trial on.
    """
    original, row = open_model(workshop.model), ran.journal.trials()[ran.result.delivered_trial or 0]
    plan = Plan.from_json(ran.json("plan.json"))
    with_selectors = plan.apply_to(original.structure)
    assert row["costs"]["macs_keep"] == pytest.approx(with_selectors.macs / original.structure.macs)
    assert any(block.reduction and block.reduction.selector for block in with_selectors.blocks)


@pytest.mark.slow
def test_an_interrupted_training_of_selectors_goes_on(ran: Ran, workshop: Workshop) -> None:
    class StopsBetweenEpochs(MemoryJournal):
        def check(self) -> None:
            if list(files.work.glob("*-selectors.pt")):
                self.cancel()
            super().check()

    files, stopped = workshop.files(), StopsBetweenEpochs()
    with pytest.raises(Canceled):
        workshop.run(budget("macs_keep", 0.75), journal=stopped, files=files, **SPVIT)
    again = workshop.run(budget("macs_keep", 0.75), journal=MemoryJournal(rows=stopped.rows), files=files, **SPVIT)
    mine, undisturbed = (load_file(one.path("pruned.safetensors")) for one in (again, ran))
    for name, value in undisturbed.items():
        torch.testing.assert_close(mine[name], value, msg=name)


@pytest.mark.parametrize(
    ("change", "options", "dataset", "words"),
    [
        ({"finetune": {"epochs": 0}}, {}, True, "Set finetune.epochs to 1 or more"),
        ({}, {}, False, "Add a data set"),
        ({}, {"num_classes": 0}, True, "needs a classifier"),
        ({}, {"depth": 1}, True, "whose token grid may shrink"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], dataset: bool, words: str
) -> None:
    model = model_folder(tmp_path / "model", **options)
    data = data_folder(tmp_path / "data", None) if dataset else None
    request = job_request(budget("macs_keep", 0.7), dataset=dataset, **{**SPVIT, **change})
    with pytest.raises(InvalidRequest, match=words):
        describe_job(request.model_dump(mode="json"), model, data, [])
    shop = Workshop(tmp_path, model, data)
    with pytest.raises(InvalidRequest, match=words):
        shop.run(budget("macs_keep", 0.7), **{**SPVIT, **change})
