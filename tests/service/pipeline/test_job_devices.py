"""Tests of jobs and devices.

A device that a user added gives the prices of a job. A job leaves the machine alone while another job measures on it.
"""

import json
import threading
import time
from pathlib import Path

import pytest

from latency.devices.devices import read_device
from latency.devices.host import ADDED
from latency.devices.setting import Setting
from latency.measuring.machine_lock import measuring_lease
from latency.prediction.profile import ProfilePricer
from models.loading.load_model import open_model
from service.jobs.journal import MemoryJournal
from tests.support.small_jobs import Workshop, budget, delivered_network

pytestmark = pytest.mark.usefixtures("brief")


@pytest.mark.slow
def test_a_device_that_a_user_added_prices_a_job(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of the budget in the report must be the price of the delivered network by the user's profile."""
    generic = read_device("generic-mobile")
    slow = {**generic["ns_per_value"], "activation": 100 * generic["ns_per_value"]["activation"]}
    (tmp_path / "user-slow.json").write_text(json.dumps({**generic, "name": "user-slow", "ns_per_value": slow}))
    monkeypatch.setenv(ADDED, str(tmp_path))
    ran = workshop.run(budget("latency_keep", 0.6, "user-slow"))
    structures = [open_model(workshop.model).structure, delivered_network(ran).structure]
    found = ProfilePricer("user-slow", Setting()).price(structures)
    (row,) = ran.report["budgets"]
    assert row["met"] and row["share"] == pytest.approx((found.ms + found.half_width_ms)[1] / found.ms[0] / 0.6)
    assert ran.result.guarantee == "predicted"


def test_trials_wait_while_another_job_measures(workshop: Workshop) -> None:
    searching = threading.Event()
    journal = MemoryJournal(on_change=lambda now: searching.set() if "searching" in now.stages else None)
    job = threading.Thread(target=lambda: workshop.run(budget("macs_keep", 0.6), trials=2, journal=journal))
    with measuring_lease():
        job.start()
        assert searching.wait(120)
        time.sleep(0.5)
        assert journal.rows == []
    job.join()
    assert len(journal.rows) >= 2
