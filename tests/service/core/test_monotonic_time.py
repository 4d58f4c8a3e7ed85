"""Tests with a machine clock that jumps by hours, forward and back.

No job is lost or runs twice, and nobody is locked out.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from vitfit.report import JobResult

import service.db.job_states
import service.db.tables
import service.jobs.leases
from service.core.data_folder import DataFolder
from service.db.tables import JobRow, Store
from service.jobs.job_store import Jobs
from service.jobs.leases import START_S, Lease, Leases
from service.library.retention import Retention
from service.middleware.rate_limit import RateLimit
from service.storage.local_folder import LocalStorage
from tests.service.conftest import new_job

LEASE_S = 30.0
HOURS = 5 * 3600.0


class Clocks:
    """Two clocks: the time that the machine shows, and the time that really passes."""

    def __init__(self) -> None:
        self.wall, self.gone_s = datetime(2026, 3, 1, tzinfo=UTC), 1000.0

    def pass_by(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.gone_s += seconds

    def jump(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)

    def monotonic(self) -> float:
        return self.gone_s

    def time(self) -> float:
        return self.wall.timestamp()


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()

    class Calendar(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return clocks.wall

    monkeypatch.setattr(service.db.tables, "datetime", Calendar)
    for place in (service.db.job_states, service.jobs.leases):  # the database's clock jumps too
        monkeypatch.setattr(place, "clock", lambda _session: clocks.wall)
    return clocks


@pytest.fixture
def server(store: Store, clocks: Clocks) -> Leases:
    """The leases of a running server, which has watched the jobs from the start."""
    return Leases(store, LEASE_S, clock=clocks.monotonic)


def running(jobs: Jobs, server: Leases, **changes: Any) -> Lease:
    """Start a job whose worker has sent a heartbeat, and return its lease."""
    jobs.create(new_job(**changes))
    lease = server.claim("me")
    assert lease is not None and server.expire() == [] and server.fail_overdue() == []
    server.heartbeat(lease)
    assert server.expire() == []
    return lease


@pytest.mark.parametrize("jump_s", [HOURS, -HOURS])
def test_a_worker_that_is_heard_of_keeps_its_job_through_a_jump(
    jobs: Jobs, server: Leases, clocks: Clocks, jump_s: float
) -> None:
    lease = running(jobs, server)
    for _ in range(10):
        clocks.pass_by(LEASE_S / 4)
        clocks.jump(jump_s)
        assert server.expire() == [], "before its next heartbeat"
        server.heartbeat(lease)
        assert server.expire() == []
    server.succeed(lease, JobResult(guarantee="predicted", delivered_trial=0))
    assert (jobs.get(lease.job_id).status, jobs.get(lease.job_id).attempt) == ("succeeded", 1)


@pytest.mark.parametrize("jump_s", [HOURS, 0.0, -HOURS])
def test_a_worker_that_is_silent_loses_its_job_after_its_lease_and_not_hours_later(
    jobs: Jobs, server: Leases, clocks: Clocks, jump_s: float
) -> None:
    lease = running(jobs, server)
    clocks.jump(jump_s)
    clocks.pass_by(LEASE_S - 1)
    assert server.expire() == []
    clocks.pass_by(2)
    assert server.expire() == [lease]
    assert jobs.get(lease.job_id).status == "queued"


@pytest.mark.parametrize("jump_s", [HOURS, -HOURS])
def test_a_worker_that_starts_has_its_longer_time_through_a_jump(
    jobs: Jobs, server: Leases, clocks: Clocks, jump_s: float
) -> None:
    jobs.create(new_job())
    lease = server.claim("me")
    assert server.expire() == []
    clocks.jump(jump_s)
    clocks.pass_by(START_S - 1)
    assert server.expire() == []
    clocks.pass_by(2)
    assert server.expire() == [lease]


def test_a_worker_that_was_heard_of_once_has_no_longer_time(jobs: Jobs, server: Leases, clocks: Clocks) -> None:
    """The server did not look at the lease between the claim and the heartbeat."""
    jobs.create(new_job())
    lease = server.claim("me")
    assert lease is not None
    clocks.pass_by(1)
    server.heartbeat(lease)
    assert server.expire() == []
    clocks.pass_by(LEASE_S + 1)
    assert server.expire() == [lease]


def test_a_server_that_starts_anew_gives_every_lease_its_time(
    jobs: Jobs, server: Leases, store: Store, clocks: Clocks
) -> None:
    """The new server cannot know how long the worker has been silent, because the dates do not say it."""
    lease = running(jobs, server)
    clocks.pass_by(HOURS)
    later = Leases(store, LEASE_S, clock=clocks.monotonic)
    assert later.expire() == []
    later.heartbeat(lease)
    assert later.expire() == []
    clocks.pass_by(LEASE_S + 1)
    assert later.expire() == [lease]


@pytest.mark.parametrize("jump_s", [HOURS, 0.0, -HOURS])
def test_a_time_limit_is_neither_shortened_nor_prolonged_by_a_jump(
    jobs: Jobs, server: Leases, clocks: Clocks, jump_s: float
) -> None:
    lease = running(jobs, server, time_limit_s=600.0)
    clocks.jump(jump_s)
    clocks.pass_by(500)
    assert server.fail_overdue() == []
    server.give_up(lease)  # the time limit also counts while the job waits
    clocks.pass_by(99)
    assert server.fail_overdue() == []
    again = server.claim("me")
    assert again is not None
    clocks.pass_by(2)
    assert server.fail_overdue() == [lease.job_id]


def test_a_time_limit_counts_what_went_before_the_server(
    jobs: Jobs, server: Leases, store: Store, clocks: Clocks
) -> None:
    lease = running(jobs, server, time_limit_s=600.0)
    clocks.pass_by(500)
    later = Leases(store, LEASE_S, clock=clocks.monotonic)
    assert later.fail_overdue() == []
    clocks.pass_by(101)
    assert later.fail_overdue() == [lease.job_id]


def test_jobs_that_are_kept_for_a_month_survive_a_jump_by_years(
    store: Store, jobs: Jobs, clocks: Clocks, tmp_path: Path
) -> None:
    folder = DataFolder(tmp_path)
    folder.create()
    job = jobs.create(new_job()).id
    jobs.cancel(job)
    keeper = Retention(store, folder, LocalStorage(folder), 30, quota_bytes=None, clock=clocks.monotonic)
    clocks.jump(20 * 365 * 86_400.0)
    assert keeper.sweep() == [] and jobs.get(job).status == "canceled"
    clocks.jump(-20 * 365 * 86_400.0)
    clocks.pass_by(31 * 86_400.0)
    assert keeper.sweep() == [job]


def test_requests_are_counted_by_the_minute_that_really_goes_by(clocks: Clocks) -> None:
    """A clock that is put forward gives no free requests. A clock that is put back locks nobody out."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse(""))])
    web = TestClient(RateLimit(app, 3, clock=clocks.monotonic))

    def statuses(count: int) -> list[int]:
        return [web.get("/").status_code for _ in range(count)]

    assert statuses(4) == [200, 200, 200, 429]
    for jump_s in (HOURS, -HOURS):
        clocks.jump(jump_s)
        assert statuses(1) == [429]
    clocks.pass_by(61)
    assert statuses(4) == [200, 200, 200, 429]


def test_the_order_of_finishing_and_starting_does_not_matter_to_a_job(
    jobs: Jobs, server: Leases, store: Store, clocks: Clocks
) -> None:
    """The clock is set back between the start and the end, so the job's dates contradict each other.

    The job succeeds like any other.
    """
    lease = running(jobs, server)
    clocks.jump(-HOURS)
    server.succeed(lease, JobResult(guarantee="predicted", delivered_trial=0))
    with store.read() as session:
        row = session.get(JobRow, lease.job_id)
        assert row is not None and row.finished_at is not None and row.started_at is not None
        assert row.finished_at < row.started_at and row.status == "succeeded"
