"""What a job found out, in words: every number with its unit, and nothing claimed that was not measured."""

import dataclasses
from typing import Any

import pytest

from latency.devices.setting import Setting
from latency.measuring.footprint import Footprint, OperatorTime
from latency.measuring.sampling import Measurement
from models.structure import Plan, Structure, TokenPlan, identity
from service.reports import report_text as story
from service.reports.model_card import model_card
from tests.support.networks import small_network

SHAPE = {"img_size": 32, "depth": 3}


@pytest.fixture(scope="module")
def structure() -> Structure:
    """Three blocks of 3 heads with 16 dims, 192 neurons, 16 patches and a class token."""
    return small_network(**SHAPE).structure


@pytest.fixture(scope="module")
def plan(structure: Structure) -> Plan:
    """Block 0 loses a head, block 1 is gone, block 2 keeps 8 patches and half of its neurons."""
    first, _, last = identity(structure).blocks
    first = dataclasses.replace(first, heads=first.heads[:2])
    last = dataclasses.replace(last, neurons=last.neurons[:96], tokens=TokenPlan(8))
    return dataclasses.replace(identity(structure), blocks=(first, last))


def measured(ms: float) -> Measurement:
    """Two processes of fifty rounds: one in ten takes twice as long."""
    rounds = tuple((2 * ms if i % 10 == 9 else ms + ms * 0.001 * (i % 3),) for i in range(50))
    return Measurement("cpu", "a machine", Setting(), (rounds, rounds))


FOOTPRINT = Footprint(12.0, 5.25, 40.0, (OperatorTime("MatMul", 12, 1.5, 0.75), OperatorTime("Softmax", 3, 0.5, 0.25)))


def report(structure: Structure, **changes: Any) -> dict[str, Any]:
    return {
        "model": "vit", "machine": "a machine", "setting": "cpu, 1 thread, batch 1, fp32",
        "original": story.side(structure, 1_500_000, 95, 100, measured(4.0), FOOTPRINT),
        "delivered": story.side(structure, 750_000, 94, 100, measured(2.0), FOOTPRINT),
        "ratio": {"measured": 0.5, "low": 0.49, "high": 0.51, "predicted": 0.52},
        "budgets": [{"text": "at most 0.6", "outcome": "met"}],
        "axes": [{"axis": "heads", "share": 0.9}, {"axis": "tokens", "share": None}],
        "parity": {"quantised": None}, "precision": {"name": "fp32", "layers": 12, "exact": [], "weight_bits": None},
        "share_of_macs_fall": 0.95, "blocks": [], "warnings": ["Few images."], **changes,
    }  # fmt: skip


def test_what_was_removed_is_told_block_by_block_of_the_original(structure: Structure, plan: Plan) -> None:
    first, gone, last = story.removed(structure, plan)
    assert (first["heads"], first["qk"], first["v"], first["neurons"]) == ([2, 3], [16, 16], [16, 16], [192, 192])
    assert gone["heads"] == [0, 3] and gone["neurons"] == [0, 192] and gone["tokens"][0] == 0
    assert last["neurons"] == [96, 192]
    assert last["tokens"] == [10, 17]  # class token, 8 patches, the package of the others
    assert [row["name"] for row in (first, gone, last)] == ["blocks.0", "blocks.1", "blocks.2"]


def test_only_axes_that_shrink_are_accounted_for(structure: Structure, plan: Plan) -> None:
    assert list(story.axes_of(plan, structure)) == ["heads", "neurons", "tokens", "blocks"]
    assert list(story.axes_of(identity(structure), structure)) == []
    assert list(story.axes_of(plan.only("tokens", structure), structure)) == ["tokens"]


def test_the_precision_is_told_where_something_is_quantised(structure: Structure, plan: Plan) -> None:
    exact = dataclasses.replace(plan.blocks[0], exact=("proj", "fc2"))
    int8 = dataclasses.replace(plan, precision="int8", blocks=(exact, *plan.blocks[1:]))
    found = story.precision(int8, 7)
    assert found == {"name": "int8", "layers": 8, "exact": ["0.proj", "0.fc2"], "weight_bits": 7}
    assert story.precision(plan, 7)["weight_bits"] is None
    quantised = {"images": 500, "clear": 490, "same_answers": 0.998}
    axes = [{"axis": "precision", "share": None, "latency_fall": 0.41}]
    told = report(structure, precision=found, parity={"quantised": quantised}, axes=axes)
    assert ["precision", "fp32", "int8 (7-bit weights), 2 of 8 linear layers in fp32"] in story.headline(told)
    notes = "\n".join(story.notes(told))
    assert (
        "saved by int8 alone, nothing pruned: 41 %" in notes and "for 99.8 % of 490 test images (10 left out" in notes
    )
    assert "weights have 7 bits" in notes and "VNNI" not in notes
    assert list(story.axes_of(int8, structure)) == [*story.axes_of(plan, structure), "precision"]
    alone = int8.only("precision", structure).apply_to(structure)
    assert alone.macs == structure.macs and alone.blocks[0].exact == ("proj", "fc2")
    assert int8.only("heads", structure).precision == "fp32"


def test_gathered_inputs_are_an_axis_of_their_own(structure: Structure) -> None:
    """Of 3 x 48 dims that q/k/v, the projection and fc1 read, 40 + 40 + 48 are left."""
    whole = identity(structure)
    first = dataclasses.replace(whole.blocks[0], qkv_inputs=tuple(range(40)), proj_inputs=tuple(range(40)))
    plan = dataclasses.replace(whole, blocks=(first, *whole.blocks[1:]))
    assert list(story.axes_of(plan, structure)) == ["inputs"]
    rows = story.removed(structure, plan)
    assert rows[0]["inputs"] == [128, 144] and rows[1]["inputs"] == [144, 144]


def test_the_table_has_counts_units_and_spread(structure: Structure) -> None:
    rows = {label: (before, after) for label, before, after in story.headline(report(structure))}
    assert rows["accuracy"] == ("95/100 = 95.0 %", "94/100 = 94.0 %")
    assert rows["latency, cpu, 1 thread, batch 1, fp32"][1].startswith("2.002 ms (")
    assert rows["loading and first run"][1] == "12 ms + 5.2 ms" and rows["memory, at its peak"][1] == "40 MiB"
    assert rows["dearest operators"][1] == "MatMul 75 %, Softmax 25 %"
    assert rows["MACs"][0] == f"{structure.macs / 1e6:,.1f} M"
    assert rows["parameters"][0] == f"{structure.params / 1e6:,.2f} M"
    assert rows["ONNX file"] == ("1.50 MB", "0.75 MB")


def test_tails_are_told_only_from_enough_runs(structure: Structure) -> None:
    latency = story.side(structure, 1, 1, 1, measured(2.0))["latency"]
    assert latency["p90_ms"] == pytest.approx(2.004) and latency["p99_ms"] is None
    many = Measurement("cpu", "m", Setting(), (tuple((float(i),) for i in range(1000)),))
    assert story.milliseconds(many)["p99_ms"] == 989.0 and story.milliseconds(many)["p90_ms"] == 899.0


def test_nothing_is_claimed_that_was_not_assessed_or_measured(structure: Structure) -> None:
    unknown = story.side(structure, 1, None, 100, None)
    rows = story.headline(report(structure, original=unknown, delivered=unknown))
    assert [label for label, *_ in rows] == ["accuracy", "MACs", "parameters", "ONNX file"]
    assert rows[0] == ["accuracy", "not assessed", "not assessed"]


def test_the_notes_set_prediction_beside_measurement(structure: Structure) -> None:
    notes = story.notes(report(structure))
    assert notes == [
        "at most 0.6: met",
        "measured latency over the original's: 0.500 (0.490 to 0.510), predicted 0.520",
        "fall of latency over fall of MACs, each axis alone: "
        "heads 0.90, neurons (nothing removed), tokens (too little removed to tell)",
        "fall of latency over fall of MACs, all together: 0.95",
        "Few images.",
    ]
    unpredicted = {"measured": 0.5, "low": 0.49, "high": 0.51, "predicted": None}
    assert "predicted" not in story.notes(report(structure, ratio=unpredicted))[1]


def test_the_card_shows_the_same_numbers(structure: Structure, plan: Plan) -> None:
    told = report(structure, blocks=story.removed(structure, plan))
    card = model_card(told)
    for label, before, after in story.headline(told):
        assert f"| {label} | {before} | {after} |" in card
    assert "| blocks.0 | 2 of 3 | 16 of 16 | 16 of 16 | 192 of 192 | 17 of 17 |" in card
    assert all(f"- {note}" in card for note in story.notes(told))
