"""Tests of the second measurement of a device, and of what a job reports as progress."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latency.prediction.table import Table
from models.errors import ImpossibleBudget
from models.loading.load_model import open_model
from service.jobs.journal import MemoryJournal
from service.pipeline.pricing import Pricing
from service.pipeline.profiling import measure_again, profile
from service.pipeline.verification import Verifier
from tests.support.small_jobs import Workshop, briefly, budget, data_folder, job_request, model_folder

BUSY = 1e6
"""How much slower the busy machine was. No measurement of a test comes near this."""


@pytest.fixture(autouse=True, scope="module")
def brief() -> Iterator[None]:
    with briefly():
        yield


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workshop, Table]:
    """A workshop, and the table of its network on this machine."""
    root = tmp_path_factory.mktemp("workshop")
    model = model_folder(root / "model", depth=2)
    workshop = Workshop(root, model, data_folder(root / "data", model))
    return workshop, profiled(workshop, root / "quiet", 1e3)[0]


def profiled(workshop: Workshop, folder: Path, limit_ms: float) -> tuple[Table, Pricing]:
    """Return the table that a job with this limit on the latency stores in, or takes from, `folder`."""
    work = folder / "work"
    work.mkdir(parents=True)
    network = open_model(workshop.model)
    pricing = Pricing(job_request(budget("latency_ms", limit_ms)), network.structure)
    profile(pricing, network, Verifier(network, pricing, work, 0), folder, work=work)
    table = pricing.table(pricing.measured_places[0])
    assert table is not None
    return table, pricing


def of_busy_machine(table: Table) -> Table:
    return dataclasses.replace(table, original_ms=table.original_ms * BUSY)


def test_a_table_of_a_busy_machine_does_not_make_a_budget_impossible(quiet: tuple[Workshop, Table]) -> None:
    workshop, table = quiet
    files = workshop.files()
    files.tables.mkdir()
    of_busy_machine(table).save(files.tables)
    limit = table.original_ms * BUSY**0.5
    assert workshop.run(budget("latency_ms", limit), files=files, trials=1).result.guarantee == "measured"
    later, _ = profiled(workshop, files.tables, limit)
    assert later.original_ms < limit, "later jobs use the better table"


def test_a_second_measurement_that_is_worse_is_not_used(quiet: tuple[Workshop, Table], tmp_path: Path) -> None:
    workshop, table = quiet
    dataclasses.replace(table, original_ms=table.original_ms / BUSY).save(tmp_path)
    known, pricing = profiled(workshop, tmp_path, table.original_ms / BUSY**2)
    (stored,) = tmp_path.glob("*.json")
    before = stored.read_bytes()
    network, (place,) = open_model(workshop.model), pricing.measured_places
    verifier = Verifier(network, pricing, tmp_path / "work", 0)
    told: list[str] = []
    verifier.tell = told.append
    measure_again(
        pricing,
        network,
        verifier,
        tmp_path,
        work=tmp_path / "work",
        least_costs=lambda: [float(pricing.price([network.structure])[0, 0])],
        precisions=["fp32"],
    )
    assert told and pricing.table(place) == known
    assert stored.read_bytes() == before and not list((tmp_path / "work").glob("*.json"))


def test_a_budget_that_is_impossible_stays_so(quiet: tuple[Workshop, Table]) -> None:
    workshop, table = quiet
    with pytest.raises(ImpossibleBudget, match="No policy meets the budget"):
        workshop.run(budget("latency_ms", table.original_ms / BUSY), trials=1)


def test_only_what_is_new_is_progress(quiet: tuple[Workshop, Table]) -> None:
    """A job that crashes after every reuse of its files would otherwise be started without end."""
    workshop, _ = quiet
    files, first, second = workshop.files(), MemoryJournal(), MemoryJournal()
    limits = budget("macs_keep", 0.8)
    options: dict[str, Any] = {"trials": 1, "finetune": {"epochs": 2}}
    workshop.run(limits, files=files, journal=first, **options)
    assert first.saves == 3, "a ranking and two epochs"
    second.rows = list(first.rows)
    workshop.run(limits, files=files, journal=second, **options)
    assert second.saves == 0
