"""Tests of the queue: the order of the jobs, how many run at a time, and for how long."""

from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core.errors import TooMany
from service.db.tables import JobRow, Store, now
from service.jobs.job_store import Jobs, NewJob
from service.jobs.leases import Lease, Leases
from tests.service.conftest import new_job
from tests.support.rest import create_model, problem
from tests.support.running import wait_until


def job_of(owner: str, **changes: Any) -> NewJob:
    return NewJob(new_job(**changes).request, owner)


def claimed(leases: Leases) -> list[str]:
    found = []
    while (lease := leases.claim("me")) is not None:
        found.append(lease.job_id)
    return found


def test_higher_priorities_start_first_and_equals_in_their_order(jobs: Jobs, leases: Leases) -> None:
    ids = [jobs.create(new_job(priority=priority)).id for priority in (0, 5, -1, 5, 0)]
    assert claimed(leases) == [ids[1], ids[3], ids[0], ids[4], ids[2]]


def test_one_person_does_not_take_all_workers(jobs: Jobs, store: Store) -> None:
    leases = Leases(store, 30.0, most_running=2)
    ann = [jobs.create(job_of("ann", priority=9)).id for _ in range(4)]
    bob = [jobs.create(job_of("bob")).id for _ in range(1)]
    assert claimed(leases) == [ann[0], ann[1], bob[0]]
    leases.give_up(Lease(ann[0], 1))
    jobs.cancel(ann[0])
    assert claimed(leases) == [ann[2]]


def test_more_unfinished_jobs_than_allowed_are_refused(store: Store) -> None:
    jobs = Jobs(store, most_unfinished=2)
    first, _ = jobs.create(job_of("ann")), jobs.create(job_of("ann"))
    with pytest.raises(TooMany, match="accepts only 2 from one person"):
        jobs.create(job_of("ann"))
    jobs.create(job_of("bob"))
    jobs.cancel(first.id)
    jobs.create(job_of("ann"))


def test_a_job_whose_time_is_over_fails_and_keeps_its_trials(jobs: Jobs, leases: Leases, store: Store) -> None:
    slow, other = jobs.create(new_job(time_limit_s=60.0)), jobs.create(new_job())
    lease = leases.claim("me")
    assert lease is not None and leases.claim("me") is not None
    leases.record(lease, {"number": 0})
    assert Leases(store, 30.0).fail_overdue() == []
    with store.write() as session:
        for job_id in (slow.id, other.id):
            row = session.get(JobRow, job_id)
            assert row is not None
            row.started_at = now() - timedelta(seconds=61)
    assert leases.fail_overdue() == [slow.id]
    ended = jobs.get(slow.id)
    assert ended.status == "failed" and ended.error is not None and ended.error["code"] == "time-limit-reached"
    assert jobs.trial_numbers(slow.id) == [0] and jobs.get(other.id).status == "running"


def test_a_time_limit_ends_a_running_job(web: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITFIT_FAKE_TRIAL_S", "20")
    body = {"model": create_model(web), "budgets": [{"metric": "macs_keep", "limit": 0.6}], "time_limit_s": 0.5}
    job = web.post("/v1/jobs", json=body).json()["id"]
    wait_until(lambda: web.get(f"/v1/jobs/{job}").json()["status"] == "failed", "the limit")
    assert web.get(f"/v1/jobs/{job}").json()["error"]["type"] == "/problems/time-limit-reached"


@pytest.mark.parametrize("change", [{"priority": 101}, {"time_limit_s": 0}, {"time_limit_s": 1e9}])
def test_absurd_wishes_are_refused(web: TestClient, change: dict[str, Any]) -> None:
    body = {"model": create_model(web), "budgets": [{"metric": "macs_keep", "limit": 0.6}], **change}
    problem(web.post("/v1/jobs", json=body), 422, "invalid-request")
