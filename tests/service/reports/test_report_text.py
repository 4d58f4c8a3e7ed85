"""Tests of the text of a report. Every number has its unit, and the text claims nothing that was not measured."""

import dataclasses
import json
from typing import Any

import pytest
from vitfit.report import (
    Agreement,
    AxisShare,
    BudgetOutcome,
    Footprint,
    LatencyRatio,
    OperatorTime,
    ParityOutcome,
    Precision,
    QuantisedParity,
    Report,
    SamplesMs,
    Side,
)

from latency.devices.setting import Setting
from latency.measuring.sampling import Measurement
from models.structure import Plan, Structure, TokenPlan, identity
from service.reports import report_facts as facts
from service.reports import report_text
from service.reports.model_card import model_card
from tests.support.networks import small_network

SHAPE: dict[str, Any] = {"img_size": 32, "depth": 3}


@pytest.fixture(scope="module")
def structure() -> Structure:
    """A structure of three blocks, each with 3 heads of 16 dims and 192 neurons.

    It has 16 patches and a class token.
    """
    return small_network(**SHAPE).structure


@pytest.fixture(scope="module")
def plan(structure: Structure) -> Plan:
    """A plan: block 0 loses a head, block 1 is removed, and block 2 keeps 8 patches and half of its neurons."""
    first, _, last = identity(structure).blocks
    first = dataclasses.replace(first, heads=first.heads[:2])
    last = dataclasses.replace(last, neurons=last.neurons[:96], tokens=TokenPlan(8))
    return dataclasses.replace(identity(structure), blocks=(first, last))


def measured(ms: float) -> Measurement:
    """Return a measurement of two processes with fifty rounds each. One round in ten takes twice as long."""
    rounds = tuple((2 * ms if i % 10 == 9 else ms + ms * 0.001 * (i % 3),) for i in range(50))
    return Measurement("cpu", "a machine", Setting(), (rounds, rounds))


FOOTPRINT = Footprint(
    load_ms=12.0,
    first_run_ms=5.25,
    peak_mib=40.0,
    operators=(
        OperatorTime(operator="MatMul", count=12, ms=1.5, share=0.75),
        OperatorTime(operator="Softmax", count=3, ms=0.5, share=0.25),
    ),
)
RATIO = LatencyRatio(measured=0.5, low=0.49, high=0.51, predicted=0.52)
PARITY = ParityOutcome(images=64, max_abs=1e-6, max_relative=1e-6, flips=0, passed=True)
BUDGET = BudgetOutcome(
    metric="macs_keep", limit=0.6, label="macs_keep", share=0.9, met=True, text="at most 0.6", outcome="met"
)


def told_side(structure: Structure, *, megabytes: float, correct: int | None, ms: float | None) -> Side:
    return facts.side(
        structure,
        file_bytes=round(megabytes * 1e6),
        correct=correct,
        images=100,
        latency=None if ms is None else measured(ms),
        footprint=None if ms is None else FOOTPRINT,
    )


def report(structure: Structure, **changes: Any) -> Report:
    told = Report(
        version="0.1.0",
        model="vit",
        method="joint",
        guarantee="measured",
        setting="cpu, 1 thread, batch 1, fp32",
        machine="a machine",
        original=told_side(structure, megabytes=1.5, correct=95, ms=4.0),
        delivered=told_side(structure, megabytes=0.75, correct=94, ms=2.0),
        agreement=Agreement(score=-0.01, same_answer=0.99),
        ratio=RATIO,
        budgets=(BUDGET,),
        parity=PARITY,
        precision=Precision(name="fp32", layers=12),
        blocks=(),
        axes=(
            AxisShare(axis="heads", macs_fall=0.1, latency_fall=0.09, share=0.9),
            AxisShare(axis="tokens", macs_fall=0.001, latency_fall=0.0),
        ),
        share_of_macs_fall=0.95,
        trials=(),
        delivered_trial=0,
        samples_ms=SamplesMs(original=(), delivered=()),
        warnings=("Few images.",),
        request={},
    )
    return dataclasses.replace(told, **changes)


def test_what_was_removed_is_told_block_by_block_of_the_original(structure: Structure, plan: Plan) -> None:
    first, gone, last = facts.block_sizes(structure, plan)
    assert (first.heads, first.qk, first.v, first.neurons) == ((2, 3), (16, 16), (16, 16), (192, 192))
    assert gone.heads == (0, 3) and gone.neurons == (0, 192) and gone.tokens[0] == 0
    assert last.neurons == (96, 192)
    assert last.tokens == (10, 17)  # class token, 8 patches, and the fused token
    assert [row.name for row in (first, gone, last)] == ["blocks.0", "blocks.1", "blocks.2"]


def test_only_axes_that_shrink_are_accounted_for(structure: Structure, plan: Plan) -> None:
    assert list(facts.axes_of(plan, structure)) == ["heads", "neurons", "tokens", "blocks"]
    assert list(facts.axes_of(identity(structure), structure)) == []
    assert list(facts.axes_of(plan.only("tokens", structure), structure)) == ["tokens"]


def test_the_precision_is_told_where_something_is_quantised(structure: Structure, plan: Plan) -> None:
    exact = dataclasses.replace(plan.blocks[0], exact=("proj", "fc2"))
    int8 = dataclasses.replace(plan, precision="int8", blocks=(exact, *plan.blocks[1:]))
    found = facts.precision(int8, 7)
    assert found == Precision(name="int8", layers=8, exact=("0.proj", "0.fc2"), weight_bits=7)
    assert facts.precision(plan, 7).weight_bits is None
    quantised = QuantisedParity(images=500, clear=490, same_answers=0.998, max_relative=0.1)
    axes = (AxisShare(axis="precision", macs_fall=0.0, latency_fall=0.41),)
    told = report(structure, precision=found, parity=dataclasses.replace(PARITY, quantised=quantised), axes=axes)
    assert ("precision", "fp32", "int8 (7-bit weights), 2 of 8 linear layers in fp32") in report_text.headline(told)
    notes = "\n".join(report_text.notes(told))
    assert (
        "saved by int8 alone, with nothing pruned: 41 %" in notes and "99.8 % of 490 test images. 10 further" in notes
    )
    assert "weights of the int8 file have 7 bits" in notes and "VNNI" not in notes
    assert list(facts.axes_of(int8, structure)) == [*facts.axes_of(plan, structure), "precision"]
    alone = int8.only("precision", structure).apply_to(structure)
    assert alone.macs == structure.macs and alone.blocks[0].exact == ("proj", "fc2")
    assert int8.only("heads", structure).precision == "fp32"


def test_gathered_inputs_are_an_axis_of_their_own(structure: Structure) -> None:
    """q/k/v, the projection and fc1 read 3 x 48 dims in the original. The plan leaves 40 + 40 + 48 of them."""
    whole = identity(structure)
    first = dataclasses.replace(whole.blocks[0], qkv_inputs=tuple(range(40)), proj_inputs=tuple(range(40)))
    plan = dataclasses.replace(whole, blocks=(first, *whole.blocks[1:]))
    assert list(facts.axes_of(plan, structure)) == ["inputs"]
    rows = facts.block_sizes(structure, plan)
    assert rows[0].inputs == (128, 144) and rows[1].inputs == (144, 144)


def test_the_table_has_counts_units_and_spread(structure: Structure) -> None:
    rows = {label: (before, after) for label, before, after in report_text.headline(report(structure))}
    assert rows["accuracy"] == ("95/100 = 95.0 %", "94/100 = 94.0 %")
    assert rows["latency, cpu, 1 thread, batch 1, fp32"][1].startswith("2.002 ms (")
    assert rows["loading and first run"][1] == "12 ms + 5.2 ms" and rows["peak memory"][1] == "40 MiB"
    assert rows["slowest operators"][1] == "MatMul 75 %, Softmax 25 %"
    assert rows["MACs"][0] == f"{structure.macs / 1e6:,.1f} M"
    assert rows["parameters"][0] == f"{structure.params / 1e6:,.2f} M"
    assert rows["ONNX file"] == ("1.50 MB", "0.75 MB")


def test_tails_are_told_only_from_enough_runs(structure: Structure) -> None:
    latency = facts.milliseconds(measured(2.0))
    assert latency.p90_ms == pytest.approx(2.004) and latency.p99_ms is None
    many = Measurement("cpu", "m", Setting(), (tuple((float(i),) for i in range(1000)),))
    assert facts.milliseconds(many).p99_ms == 989.0 and facts.milliseconds(many).p90_ms == 899.0


def test_nothing_is_claimed_that_was_not_assessed_or_measured(structure: Structure) -> None:
    unknown = told_side(structure, megabytes=1, correct=None, ms=None)
    rows = report_text.headline(report(structure, original=unknown, delivered=unknown))
    assert [label for label, *_ in rows] == ["accuracy", "MACs", "parameters", "ONNX file"]
    assert rows[0] == ("accuracy", "not assessed", "not assessed")


def test_the_notes_set_prediction_beside_measurement(structure: Structure) -> None:
    notes = report_text.notes(report(structure))
    assert notes == [
        "Budget of at most 0.6: met.",
        "Measured latency divided by the original's: 0.500 (0.490 to 0.510), predicted 0.520.",
        "Fall of latency divided by fall of MACs, each axis pruned alone: "
        "heads 0.90, neurons (nothing removed), tokens (too little removed to tell).",
        "Fall of latency divided by fall of MACs, all axes together: 0.95.",
        "Few images.",
    ]
    unpredicted = dataclasses.replace(RATIO, predicted=None)
    assert "predicted" not in report_text.notes(report(structure, ratio=unpredicted))[1]


def test_the_json_of_a_report_gives_the_same_report(structure: Structure, plan: Plan) -> None:
    """Clients read report.json with the same class. They ignore fields that a newer server adds."""
    told = report(structure, blocks=facts.block_sizes(structure, plan))
    document = json.loads(json.dumps(told.to_json()))
    assert Report.from_json({**document, "colour": "red"}) == told


def test_the_card_shows_the_same_numbers(structure: Structure, plan: Plan) -> None:
    told = report(structure, blocks=facts.block_sizes(structure, plan))
    card = model_card(told)
    for label, before, after in report_text.headline(told):
        assert f"| {label} | {before} | {after} |" in card
    assert "| blocks.0 | 2 of 3 | 16 of 16 | 16 of 16 | 192 of 192 | 17 of 17 |" in card
    assert all(f"- {note}" in card for note in report_text.notes(told))
