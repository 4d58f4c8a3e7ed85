"""Tests of both journals with one set of tests, and tests of the features that only one of them has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from models.errors import Canceled
from service.jobs.job_store import Jobs
from service.jobs.journal import STAGES, Fenced, Journal, MemoryJournal
from service.jobs.leases import Lease, Leases
from service.jobs.stored_journal import StoredJournal
from tests.service.conftest import new_job


def trial(number: int) -> dict[str, Any]:
    return {"number": number, "policy": {"heads": 0.5}, "score": -0.1, "accuracy": None, "costs": {"macs": 0.6}}


@pytest.fixture
def lease(jobs: Jobs, leases: Leases) -> Lease:
    jobs.create(new_job())
    lease = leases.claim("server")
    assert lease is not None
    return lease


@pytest.fixture(params=["memory", "stored"])
def journal(request: pytest.FixtureRequest, leases: Leases, lease: Lease) -> Journal:
    return MemoryJournal() if request.param == "memory" else StoredJournal(leases, lease)


class TestEveryJournal:
    def test_trials_come_back_unchanged_and_in_order(self, journal: Journal) -> None:
        assert journal.trials() == []
        for number in (2, 0, 1):
            journal.record(trial(number))
        assert journal.trials() == [trial(0), trial(1), trial(2)]

    def test_a_number_is_recorded_once(self, journal: Journal) -> None:
        journal.record(trial(0))
        with pytest.raises(ValueError, match="recorded before"):
            journal.record({**trial(0), "score": 0.0})
        assert journal.trials() == [trial(0)]

    def test_stages_are_those_of_the_interface(self, journal: Journal) -> None:
        for stage in STAGES:
            journal.stage(stage)
        with pytest.raises(ValueError, match="validating, ranking"):
            journal.stage("dreaming")

    def test_check_and_progress_are_quiet_when_all_is_well(self, journal: Journal) -> None:
        journal.check()
        journal.progress(1, 4, None, 3.0)
        journal.note("measuring candidate 1 of at most 6, process 1 of at most 8")


def test_what_is_saved_starts_the_count_of_crashes_anew(jobs: Jobs, leases: Leases, lease: Lease) -> None:
    leases.crash(lease, "died")
    again = leases.claim("server")
    assert again is not None and jobs.get(lease.job_id).crashes == 1
    StoredJournal(leases, again).saved()
    assert jobs.get(lease.job_id).crashes == 0


def test_the_memory_journal_is_canceled_by_a_call_and_tells_of_changes() -> None:
    seen: list[int] = []
    journal = MemoryJournal(on_change=lambda changed: seen.append(len(changed.rows)))
    journal.record(trial(0))
    journal.progress(1, 4, -0.1, 3.0)
    assert (seen, journal.last_progress) == ([1, 1], (1, 4, -0.1, 3.0))
    journal.cancel()
    with pytest.raises(Canceled):
        journal.check()


def test_a_note_stands_until_the_next_stage_or_progress(jobs: Jobs, leases: Leases, lease: Lease) -> None:
    ends: list[Callable[[Journal], None]] = [lambda j: j.stage("verifying"), lambda j: j.progress(1, 4, -0.1, 3.0)]
    for end in ends:
        for journal in (StoredJournal(leases, lease), MemoryJournal()):
            journal.note("measuring")
            assert note_of(journal, jobs, lease) == "measuring"
            end(journal)
            assert not note_of(journal, jobs, lease)
    assert jobs.get(lease.job_id).progress["trials_done"] == 1


def note_of(journal: Journal, jobs: Jobs, lease: Lease) -> str | None:
    found = journal.last_note if isinstance(journal, MemoryJournal) else jobs.get(lease.job_id).progress.get("note")
    return found or None


def test_notes_that_come_fast_are_written_seldom_and_the_last_one_at_last(
    jobs: Jobs, leases: Leases, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    now, seen = [100.0], set()
    journal = StoredJournal(leases, lease, clock=lambda: now[0])
    for number in range(100):
        journal.note(f"process {number}")
        now[0] += 0.08
        seen.add(note_of(journal, jobs, lease))
    assert len(seen) == 8, "4 in the first 4 s, and 4 in the second 4 s"
    now[0] += 4
    journal.check()
    assert note_of(journal, jobs, lease) == "process 99"
    assert [record.message for record in caplog.records] == [f"process {number}" for number in range(100)]


def test_a_stored_journal_is_canceled_from_outside(jobs: Jobs, leases: Leases, lease: Lease) -> None:
    journal = StoredJournal(leases, lease)
    jobs.cancel(lease.job_id)
    with pytest.raises(Canceled) as caught:
        journal.check()
    assert not isinstance(caught.value, Fenced)


def test_a_stored_journal_of_a_lost_job_writes_nothing(jobs: Jobs, leases: Leases, lease: Lease) -> None:
    journal = StoredJournal(leases, lease)
    leases.give_up(lease)
    writes: list[Callable[[], None]] = [
        lambda: journal.record(trial(0)),
        lambda: journal.stage("searching"),
        lambda: journal.note("measuring"),
    ]
    for attempt in [*writes, journal.check]:
        with pytest.raises(Fenced):
            attempt()
    assert jobs.trial_numbers(lease.job_id) == []


def test_trials_survive_the_database_being_opened_again(database: Path | URL, leases: Leases, lease: Lease) -> None:
    from service.db.tables import Store

    StoredJournal(leases, lease).record(trial(0))
    again = Store(database)
    assert Leases(again, 30.0).trials(lease.job_id) == [trial(0)]
    again.close()
