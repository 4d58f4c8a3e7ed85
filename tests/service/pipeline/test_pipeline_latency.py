"""Tests of jobs with a measured budget. The verification trusts the measured time and not the table."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latency.measuring.meter import Effort
from models.errors import ImpossibleBudget
from models.loading.load_model import open_model
from models.structure import Plan
from service.jobs.journal import MemoryJournal
from tests.support.small_jobs import SPLITS, Ran, Workshop, briefly, budget, data_folder, model_folder, random_images

VERIFY = Effort(seconds=2.0, width=0.05, processes=3, rounds=10)
LIMIT = 0.9


@pytest.fixture(autouse=True, scope="module")
def brief() -> Iterator[None]:
    with briefly(VERIFY):
        yield


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A network of 65 tokens, which spends its time on arithmetic."""
    root = tmp_path_factory.mktemp("workshop")
    model = model_folder(root / "model", img_size=64, embed_dim=96)
    images = random_images(len(SPLITS), (3, 64, 64)).numpy()
    return Workshop(root, model, data_folder(root / "data", None, images=images))


@pytest.fixture(scope="module")
def told() -> list[str]:
    """The notes of the job `measured`."""
    return []


@pytest.fixture(scope="module")
def measured(workshop: Workshop, told: list[str]) -> Ran:
    journal = MemoryJournal(on_change=lambda now: told.append(now.last_note))
    return workshop.run(budget("latency_keep", LIMIT), journal=journal)


@pytest.mark.usefixtures("measured")
def test_the_job_says_what_it_measures(told: list[str]) -> None:
    assert "measuring candidate 1 of at most 6, process 1 of at most 6" in told
    assert "measuring candidate 1 of at most 6, process 3 of at most 6" in told
    assert any(words.startswith("exporting smaller network 2 of") for words in told)
    assert any(words.endswith("smaller networks in fp32, process 1 of at most 2") for words in told)
    assert "scoring finalist 1 of at most 4" in told


def test_a_latency_budget_is_met_by_the_upper_end_of_a_measurement(measured: Ran) -> None:
    assert measured.result.guarantee == "measured"
    ratio, (row,) = measured.report["ratio"], measured.report["budgets"]
    assert ratio["low"] <= ratio["measured"] <= ratio["high"] <= LIMIT
    assert row["met"] and row["share"] == pytest.approx(ratio["high"] / LIMIT)
    assert (
        ratio["predicted"] == measured.report["trials"][measured.result.delivered_trial]["costs"][row_label(measured)]
    )
    assert measured.report["setting"] == "cpu, 1 thread, batch 1, fp32"


def row_label(ran: Ran) -> str:
    (label,) = ran.journal.rows[0]["costs"]
    return str(label)


def test_the_delivered_file_is_the_measured_file(measured: Ran) -> None:
    """Compare byte for byte, because the timings of a fine-tuned network would not show which file was measured."""
    file = measured.files.work / f"trial{measured.result.delivered_trial}-b1.onnx"
    assert measured.path("model.cpu.onnx").read_bytes() == file.read_bytes()
    assert measured.path("original.onnx").read_bytes() == (measured.files.work / "original-b1.onnx").read_bytes()


def test_the_report_keeps_every_sample(measured: Ran) -> None:
    samples = measured.report["samples_ms"]
    assert len(samples["original"]) == len(samples["delivered"]) >= VERIFY.processes
    assert all(len(rounds) >= VERIFY.rounds for rounds in samples["delivered"])


@pytest.mark.slow
def test_the_table_is_kept_for_the_next_job(workshop: Workshop, measured: Ran) -> None:
    tables = {path: path.stat().st_mtime_ns for path in (workshop.root / "tables").iterdir()}
    second = workshop.run(budget("latency_keep", 0.9), trials=1)
    assert not list(second.files.work.glob("probe*"))
    assert {path: path.stat().st_mtime_ns for path in (workshop.root / "tables").iterdir()} == tables


@pytest.mark.slow
def test_several_images_per_run_are_exported_and_measured_so(workshop: Workshop) -> None:
    ran = workshop.run(budget("latency_keep", 0.9, batch=2), trials=1)
    assert ran.report["setting"] == "cpu, 1 thread, batch 2, fp32"
    assert ran.result.guarantee == "measured" and ran.report["delivered"]["images"] == 40


@pytest.mark.slow
def test_cpu_and_phone_together_are_predicted_only(workshop: Workshop) -> None:
    ran = workshop.run(budget("latency_keep", 0.9), budget("latency_keep", 0.9, "generic-mobile"), trials=1)
    assert ran.result.guarantee == "predicted"
    assert [row["met"] for row in ran.report["budgets"]] == [True, True]


def lying_tables(workshop: Workshop, folder: Path, lie: Callable[[float], float]) -> Workshop:
    """Return the same workshop with a stored table that has other ratios than the measured ones."""
    shutil.copytree(workshop.root / "tables", folder / "tables")
    tables = {path: json.loads(path.read_text()) for path in (folder / "tables").iterdir()}
    ((path, table),) = [item for item in tables.items() if item[1]["setting"]["batch"] == 1]
    for sample in table["samples"][1:]:  # the first sample is the original
        sample["ratio"] = {name: lie(value) for name, value in sample["ratio"].items()}
    path.write_text(json.dumps(table))
    return Workshop(folder, workshop.model, workshop.dataset)


@pytest.mark.slow
def test_what_is_measured_corrects_what_was_predicted(workshop: Workshop, measured: Ran, tmp_path: Path) -> None:
    """The table says that the smallest networks cost a quarter less than they really do.

    The best networks of the search are therefore too slow.
    """
    ran = lying_tables(workshop, tmp_path, lambda r: 0.75 * r).run(budget("latency_keep", LIMIT), trials=2)
    assert ran.result.guarantee == "measured"
    assert ran.report["ratio"]["high"] <= LIMIT
    assert ran.result.delivered_trial >= 2
    assert [row["number"] for row in ran.journal.trials()] == list(range(len(ran.journal.rows)))


@pytest.mark.slow
def test_a_budget_that_only_the_table_believed_in_fails_and_says_how_near_it_came(
    workshop: Workshop, measured: Ran, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    shop = lying_tables(workshop, tmp_path, lambda r: 0.1 * r)
    files = shop.files()
    with pytest.raises(ImpossibleBudget) as caught:
        shop.run(budget("latency_keep", 0.03), trials=1, journal=journal, files=files)
    assert journal.stages[-1] == "verifying"
    assert caught.value.facts.get("nearest", 0) > 1 or caught.value.facts.get("best_reachable", 0) > 0.03
    assert list(files.artifacts.iterdir()) == []


@pytest.mark.slow
def test_the_prediction_beside_a_measurement_is_of_the_same_device(workshop: Workshop) -> None:
    ran = workshop.run(budget("latency_keep", 0.7, "generic-fpga"), trials=1)
    plan, original = Plan.from_json(ran.json("plan.json")), open_model(workshop.model).structure
    assert plan.apply_to(original).macs < original.macs
    assert ran.report["setting"].startswith("cpu")
    assert ran.report["ratio"]["predicted"] is None  # no table predicts the CPU, which was measured


@pytest.mark.parametrize("device", ["cpu", "generic-mobile"])
def test_the_limit_in_an_error_is_the_one_that_was_given(workshop: Workshop, device: str) -> None:
    with pytest.raises(ImpossibleBudget) as caught:
        workshop.run(budget("latency_keep", 0.001, device), trials=1)
    assert caught.value.facts["limit"] == 0.001
    assert "0.001 of the original's latency" in caught.value.detail
