"""Whole jobs on a small network: every kind of budget and data, and what a job leaves."""

import hashlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.errors import Canceled, ImpossibleBudget, ParityFailure
from models.export.onnx_export import run_onnx
from models.loading.load_model import open_model
from models.networks.torch_network import TorchNetwork
from models.structure import Plan, PlanAxis, identity
from service.jobs.journal import MemoryJournal
from service.pipeline.candidates import FINALISTS
from tests.support.small_jobs import (
    SPLITS,
    Ran,
    Workshop,
    budget,
    data_folder,
    delivered_network,
    expected_artifacts,
    model_folder,
    random_images,
)

TRIALS = 8
TEST_ROWS = np.array(SPLITS) == "test"


pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture(scope="module")
def counted(workshop: Workshop) -> Ran:
    """An undisturbed job with a MACs budget."""
    return workshop.run(budget("macs_keep", 0.6), trials=TRIALS)


def structure_key(ran: Ran) -> str:
    return str(ran.json("manifest.json")["structure"])


# What a job leaves


def test_a_macs_budget_is_counted_and_all_artefacts_are_there(counted: Ran) -> None:
    assert counted.result.guarantee == "counted"
    assert {path.name for path in counted.files.artifacts.iterdir()} == expected_artifacts(counted.json("plan.json"))
    assert [row["number"] for row in counted.journal.trials()] == list(range(TRIALS))
    assert counted.journal.stages == [
        "validating",
        "ranking",
        "profiling",
        "searching",
        "verifying",
        "exporting",
        "reporting",
    ]
    assert counted.journal.last_progress is not None
    assert counted.journal.last_progress[:2] == (TRIALS, TRIALS)


def test_the_best_trial_is_delivered(counted: Ran) -> None:
    """The best few trials are scored again in their final form. The best of them is delivered."""
    rows = counted.journal.trials()
    best = sorted(rows, key=lambda row: -row["score"])[:FINALISTS]
    (delivered,) = (row for row in best if row["number"] == counted.result.delivered_trial)
    assert structure_key(counted) == delivered["structure_key"]
    assert len({row["structure_key"] for row in rows}) == TRIALS


def test_the_plan_gives_the_weights_and_the_numbers_of_the_report(counted: Ran) -> None:
    original, pruned = open_model(counted.files.model).structure, delivered_network(counted)
    stored = load_file(counted.path("pruned.safetensors"))
    expected = pruned.module.state_dict()
    assert {name: value.shape for name, value in stored.items()} == {n: v.shape for n, v in expected.items()}
    side = counted.report["delivered"]
    assert (side["macs"], side["params"]) == (pruned.structure.macs, pruned.structure.params)
    assert 0.5 * original.macs < side["macs"] <= 0.6 * original.macs
    assert structure_key(counted) == pruned.structure.key
    assert counted.json("manifest.json")["original_structure"] == original.key


def test_recovery_changed_what_reads_the_removed_and_nothing_else(counted: Ran) -> None:
    dense, sliced = open_model(counted.files.model).structure.blocks, delivered_network(counted)
    expected, readers = set(), set()  # sequential recovery fits readers of the stream and the classifier too, if better
    for i, (whole, block) in enumerate(zip(dense, sliced.structure.blocks, strict=True)):
        assert whole.attention and block.attention and whole.mlp and block.mlp
        if block.attention.proj_inputs < whole.attention.proj_inputs:
            expected.add(f"blocks.{i}.attention.projection")
        if block.mlp.neurons < whole.mlp.neurons:
            expected.add(f"blocks.{i}.mlp.fc2")
        readers |= {f"blocks.{i}.attention.qkv", f"blocks.{i}.mlp.fc1", "head"}
        if block.width < whole.width:
            expected |= {f"blocks.{i}.attention.qkv", f"blocks.{i}.mlp.fc1"}
    stored, before = load_file(counted.path("pruned.safetensors")), sliced.module.state_dict()
    changed = {name.rpartition(".")[0] for name in stored if not stored[name].equal(before[name])}
    assert expected <= changed <= expected | readers and expected


def test_the_manifest_has_the_digest_of_every_other_file(counted: Ran) -> None:
    listed = counted.json("manifest.json")["files"]
    assert set(listed) == expected_artifacts(counted.json("plan.json")) - {"manifest.json"}
    for name, entry in listed.items():
        content = counted.path(name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert counted.report["delivered"]["bytes"] == listed["model.cpu.onnx"]["bytes"]
    assert counted.report["original"]["bytes"] == listed["original.onnx"]["bytes"]


def test_the_accuracy_is_that_of_the_delivered_file_on_the_test_images(counted: Ran) -> None:
    images, dense = random_images()[TEST_ROWS], open_model(counted.files.model)
    answers = run_onnx(counted.path("model.onnx"), images, 1)
    labels = dense.outputs(images).argmax(1)
    report = counted.report
    assert (report["original"]["correct"], report["original"]["images"]) == (40, 40)
    assert report["delivered"]["correct"] == int((answers.argmax(1) == labels).sum()) < 40
    assert report["delivered"]["accuracy"] == report["delivered"]["correct"] / 40


def test_all_delivered_forms_are_the_same_network(counted: Ran) -> None:
    images = random_images()[TEST_ROWS]
    answers = run_onnx(counted.path("model.onnx"), images, 1)
    module = delivered_network(counted).module
    module.load_state_dict(load_file(counted.path("pruned.safetensors")))
    program = torch.export.load(counted.path("program.pt2")).module()
    with torch.inference_mode():
        for other in (module(images), program(images), run_onnx(counted.path("model.dynamic.onnx"), images, 7)):
            torch.testing.assert_close(other, answers, rtol=1e-3, atol=1e-3)


def test_the_report_says_what_was_removed(counted: Ran) -> None:
    report = counted.report
    assert set(report) == {
        "version",
        "model",
        "method",
        "guarantee",
        "setting",
        "machine",
        "original",
        "delivered",
        "agreement",
        "ratio",
        "budgets",
        "parity",
        "precision",
        "blocks",
        "axes",
        "share_of_macs_fall",
        "trials",
        "delivered_trial",
        "samples_ms",
        "warnings",
        "request",
        "dynamic_tokens",
    }
    kept = delivered_network(counted).structure.blocks
    for row, block in zip(report["blocks"], kept, strict=True):
        assert block.attention is not None and block.mlp is not None
        assert row["heads"] == [block.attention.heads, 3]
        assert row["neurons"] == [block.mlp.neurons, 192]
        assert row["tokens"] == [block.tokens_out, 17]
    assert report["trials"] == [{"local": False, **row} for row in counted.journal.trials()]
    assert report["parity"]["passed"] and report["parity"]["images"] == 40
    assert report["request"] == counted.request.model_dump(mode="json")
    html, card = counted.path("report.html").read_text(), counted.path("model_card.md").read_text()
    for label, before, after in counted.result.rows:
        assert label in html and before in html and after in html
        assert f"| {label} | {before} | {after} |" in card
    plots = re.findall(r'<svg (?!class="patches"|width="0")', html)  # beside pictures of patches, where tokens went
    assert len(plots) == 3


def test_the_share_of_each_axis_is_measured_alone(counted: Ran) -> None:
    original, plan = open_model(counted.files.model).structure, Plan.from_json(counted.json("plan.json"))
    axes = {row["axis"]: row for row in counted.report["axes"]}
    cut: tuple[PlanAxis, ...] = ("heads", "neurons", "tokens", "embed")
    kept = {axis: plan.only(axis, original).apply_to(original) for axis in cut}
    assert axes.keys() == {axis for axis, alone in kept.items() if alone.macs < original.macs} != set()
    for axis, row in axes.items():
        alone = kept[axis]
        assert row["macs_fall"] == pytest.approx(1 - alone.macs / original.macs)
        assert row["share"] == pytest.approx(row["latency_fall"] / row["macs_fall"])


# Budgets


@pytest.mark.slow
def test_a_profile_is_predicted_and_gives_the_same_again(workshop: Workshop) -> None:
    phone = budget("latency_keep", 0.6, "generic-mobile")
    first, second = workshop.run(phone), workshop.run(phone)
    assert first.result.guarantee == second.result.guarantee == "predicted"
    assert [_timeless(row) for row in first.journal.trials()] == [_timeless(row) for row in second.journal.trials()]
    assert structure_key(first) == structure_key(second)
    (row,) = first.report["budgets"]
    assert row["met"] and 0.9 < row["share"] <= 1


def _timeless(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != "seconds"}


def test_another_seed_searches_elsewhere(workshop: Workshop, counted: Ran) -> None:
    journal = stopped_after(4)
    with pytest.raises(Canceled):
        workshop.run(budget("macs_keep", 0.6), trials=TRIALS, seed=1, journal=journal)
    mine, others = ([row["direction"] for row in rows] for rows in (journal.rows, counted.journal.rows))
    assert mine[:2] == others[:2]  # the analytic starting points
    assert mine[2] != others[2]


def stopped_after(trials: int) -> MemoryJournal:
    """A journal whose user cancels when so many trials are recorded."""

    def cancel(journal: MemoryJournal) -> None:
        if len(journal.rows) == trials:
            journal.cancel()

    return MemoryJournal(on_change=cancel)


@pytest.mark.slow
def test_all_of_several_budgets_hold(workshop: Workshop) -> None:
    limits = {"macs_keep": 0.7, "params_keep": 0.75, "latency_keep": 0.8}
    ran = workshop.run(*(budget(metric, limit, "generic-mobile") for metric, limit in limits.items()))
    original, kept = open_model(workshop.model).structure, delivered_network(ran).structure
    assert kept.macs <= 0.7 * original.macs
    assert kept.params <= 0.75 * original.params
    shares = {row["metric"]: row["share"] for row in ran.report["budgets"]}
    assert shares["macs_keep"] == pytest.approx(kept.macs / original.macs / 0.7)
    assert shares["params_keep"] == pytest.approx(kept.params / original.params / 0.75)
    assert shares["latency_keep"] <= 1
    assert max(shares.values()) > 0.9
    assert ran.result.guarantee == "predicted"


@pytest.mark.slow
def test_absolute_limits_hold(workshop: Workshop) -> None:
    ran = workshop.run(budget("macs", 1_500_000), budget("params", 100_000), trials=2)
    kept = delivered_network(ran).structure
    assert kept.macs <= 1_500_000 and kept.params <= 100_000


@pytest.mark.parametrize("limit", [budget("macs_keep", 0.005), budget("latency_keep", 0.01, "generic-mobile")])
def test_an_impossible_budget_names_what_can_be_reached_before_anything_is_evaluated(
    workshop: Workshop, limit: dict[str, object]
) -> None:
    journal = MemoryJournal()
    with pytest.raises(ImpossibleBudget) as caught:
        workshop.run(limit, journal=journal)
    facts = caught.value.facts
    assert (facts["metric"], facts["limit"]) == (limit["metric"], limit["limit"])
    assert f"{facts['best_reachable']:.4g}" in caught.value.detail
    assert journal.rows == []
    ran = workshop.run({**limit, "limit": facts["best_reachable"] * 1.0001}, trials=1)
    assert ran.report["budgets"][0]["met"]


def test_a_budget_above_the_original_delivers_it_unpruned_and_says_so(workshop: Workshop) -> None:
    ran = workshop.run(budget("macs_keep", 1.5))
    original = open_model(workshop.model)
    assert Plan.from_json(ran.json("plan.json")) == identity(original.structure)
    assert ran.report["delivered"]["macs"] == original.structure.macs
    assert "The original meets the budgets, so it is delivered unpruned." in ran.result.notes
    images = random_images()[TEST_ROWS]
    torch.testing.assert_close(
        run_onnx(ran.path("model.onnx"), images, 1), original.outputs(images), rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_the_lowest_cost_within_a_loss(workshop: Workshop, counted: Ran) -> None:
    """Of the trials that lose little enough the cheapest is delivered, though the budget would allow a larger one."""
    ran = workshop.run(budget("macs_keep", 0.95), trials=TRIALS, objective="latency", max_loss=0.2)
    dense = 1.0  # the labels are the original's own answers
    costs = {row["number"]: row["costs"]["macs_keep"] for row in ran.journal.rows if row["accuracy"] >= dense - 0.2}
    assert ran.result.delivered_trial == min(costs, key=lambda number: costs[number])
    assert costs[ran.result.delivered_trial] < 0.8
    assert ran.report["budgets"][0]["met"]


def test_a_loss_that_no_trial_keeps_to_is_an_error(workshop: Workshop) -> None:
    files = workshop.files()
    with pytest.raises(ImpossibleBudget, match="max_loss"):
        workshop.run(budget("macs_keep", 0.15), trials=2, objective="latency", max_loss=0.001, files=files)
    assert list(files.artifacts.iterdir()) == []


# Data


def test_without_labels_agreement_stands_in(workshop: Workshop) -> None:
    bare = Workshop(workshop.root / "bare", workshop.model, data_folder(workshop.root / "bare-data", None))
    ran = bare.run(budget("macs_keep", 0.6), trials=2)
    assert ran.report["original"]["accuracy"] is None and ran.report["delivered"]["correct"] is None
    assert ran.result.rows[0] == ("accuracy", "not assessed", "not assessed")
    assert any("has no labels" in warning for warning in ran.report["warnings"])
    assert all(row["accuracy"] is None and row["score"] == row["agreement"] < 0 for row in ran.journal.rows)


def test_without_data_noise_stands_in_and_accuracy_is_not_assessed(workshop: Workshop) -> None:
    ran = Workshop(workshop.root / "none", workshop.model, None).run(budget("macs_keep", 0.6), trials=2)
    assert ran.result.rows[0] == ("accuracy", "not assessed", "not assessed")
    assert any(warning.startswith("The job has no data") for warning in ran.result.notes)
    assert delivered_network(ran).structure.macs <= 0.6 * ran.report["original"]["macs"]


# Interruptions


def test_a_resumed_job_evaluates_only_what_is_missing(workshop: Workshop, counted: Ran) -> None:
    rows = counted.journal.trials()
    again = MemoryJournal(rows=rows[:5])
    ran = workshop.run(budget("macs_keep", 0.6), trials=TRIALS, journal=again)
    assert all(new is old for new, old in zip(again.rows, rows[:5], strict=False))
    assert [row["policy"] for row in again.trials()] == [row["policy"] for row in rows]
    assert [row["score"] for row in again.trials()] == pytest.approx([row["score"] for row in rows])
    assert structure_key(ran) == structure_key(counted)


def test_a_finished_search_is_only_delivered(workshop: Workshop, counted: Ran) -> None:
    again = MemoryJournal(rows=counted.journal.trials())
    assert structure_key(workshop.run(budget("macs_keep", 0.6), trials=3, journal=again)) == structure_key(counted)
    assert len(again.rows) == TRIALS


def test_another_trial_is_delivered(workshop: Workshop, counted: Ran) -> None:
    number = next(n for n in range(TRIALS) if n != counted.result.delivered_trial)
    child = MemoryJournal(rows=counted.journal.trials())
    ran = workshop.run(budget("macs_keep", 0.6), trials=TRIALS, journal=child, deliver=number)
    assert ran.result.delivered_trial == ran.report["delivered_trial"] == number
    assert structure_key(ran) == counted.journal.trials()[number]["structure_key"] != structure_key(counted)
    assert len(child.rows) == TRIALS and "searching" not in child.stages


def test_a_cancel_during_the_search_ends_the_job_at_once(workshop: Workshop) -> None:
    journal, files = stopped_after(2), workshop.files()
    with pytest.raises(Canceled):
        workshop.run(budget("macs_keep", 0.6), trials=TRIALS, journal=journal, files=files)
    assert len(journal.rows) == 2 and journal.stages[-1] == "searching"
    assert list(files.artifacts.iterdir()) == []


# Failures


def cancel_digits(network: TorchNetwork) -> None:
    """Logits become small differences of sums of millions: rounding, which no two runtimes do alike, decides."""
    module: Any = network.module
    module.norm.bias.fill_(1e6)
    module.head.weight[:, ::2], module.head.weight[:, 1::2] = 1.0, -1.0


def test_nothing_is_delivered_when_the_runtimes_disagree(workshop: Workshop) -> None:
    model = model_folder(workshop.root / "ill" / "model", change=cancel_digits)
    shop = Workshop(workshop.root / "ill", model, data_folder(workshop.root / "ill" / "data", None))
    files = shop.files()
    with pytest.raises(ParityFailure) as caught:
        shop.run(budget("macs_keep", 0.9), trials=1, files=files, basis="chosen")
    assert caught.value.facts["parity"]["free"]["max_relative"] > 1e-3
    assert list(files.artifacts.iterdir()) == []
