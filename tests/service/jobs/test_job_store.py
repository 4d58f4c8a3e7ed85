"""Tests of a job's states in the database: leases, fences and returns to the queue."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from vitfit.report import JobResult, Side

from models.errors import BadData, Canceled
from service.core.errors import Conflict, NotFound
from service.db.job_states import FINISHED, TRANSITIONS
from service.db.tables import Store
from service.jobs.job_store import Jobs, KeyTaken, NewJob
from service.jobs.journal import Fenced
from service.jobs.leases import Lease, Leases
from tests.service.conftest import new_job


def trial(number: int) -> dict[str, Any]:
    return {"number": number, "policy": {"heads": 0.5}, "score": -0.1}


def claim(leases: Leases) -> Lease:
    lease = leases.claim("server")
    assert lease is not None
    return lease


SIDE = Side(macs=10, params=20, bytes=30, accuracy=float("nan"))
RESULT = JobResult(guarantee="predicted", delivered=SIDE, delivered_trial=2)


def test_every_state_of_the_table_is_known_and_finished_states_lead_nowhere() -> None:
    assert set(FINISHED) == {"succeeded", "failed", "canceled"}
    assert {status for nexts in TRANSITIONS.values() for status in nexts} <= set(TRANSITIONS)


def test_a_job_runs_and_succeeds(jobs: Jobs, leases: Leases) -> None:
    created = jobs.create(new_job(name="mine"))
    lease = claim(leases)
    assert (created.status, created.name, lease.job_id) == ("queued", "mine", created.id)
    leases.stage(lease, "searching")
    leases.record(lease, trial(0))
    leases.progress(lease, 1, 4, -0.1, seconds_left=float("inf"))
    running = jobs.get(created.id)
    assert (running.status, running.stage, running.attempt) == ("running", "searching", 1)
    assert running.progress == {"trials_done": 1, "trials_total": 4, "best_score": -0.1, "seconds_left": None}
    leases.succeed(lease, RESULT)
    done = jobs.get(created.id)
    assert (done.status, done.guarantee, done.lease_owner) == ("succeeded", "predicted", None)
    assert done.result is not None and done.result["delivered_trial"] == 2
    assert done.result["delivered"]["macs"] == 10 and done.result["delivered"]["accuracy"] is None
    assert done.started_at is not None and done.finished_at is not None and done.finished_at >= done.started_at


def test_jobs_are_claimed_in_the_order_of_their_creation(jobs: Jobs, leases: Leases) -> None:
    ids = [jobs.create(new_job()).id for _ in range(3)]
    assert [claim(leases).job_id for _ in range(3)] == ids
    assert leases.claim("server") is None


def test_a_failure_keeps_code_detail_and_facts(jobs: Jobs, leases: Leases) -> None:
    job = jobs.create(new_job())
    leases.fail(claim(leases), BadData("Only 3 images.", images=3))
    failed = jobs.get(job.id)
    assert failed.status == "failed"
    assert failed.error == {"code": "bad-data", "detail": "Only 3 images.", "facts": {"images": 3}}


def test_cancel_in_each_state(jobs: Jobs, leases: Leases) -> None:
    queued = jobs.create(new_job())
    assert jobs.cancel(queued.id).status == "canceled"
    running = jobs.create(new_job())
    lease = claim(leases)
    assert [jobs.cancel(running.id).status for _ in range(2)] == ["canceling", "canceling"]
    with pytest.raises(Canceled):
        leases.check(lease)
    leases.confirm_cancel(lease)
    assert jobs.cancel(running.id).status == "canceled"
    finished = jobs.create(new_job())
    leases.succeed(claim(leases), RESULT)
    assert jobs.cancel(finished.id).status == "succeeded"
    with pytest.raises(NotFound):
        jobs.cancel("job_none")


@pytest.mark.parametrize("end", ["succeed", "fail", "give_up", "crash"])
def test_a_canceling_job_ends_canceled_whatever_its_worker_says(jobs: Jobs, leases: Leases, end: str) -> None:
    job = jobs.create(new_job())
    lease = claim(leases)
    jobs.cancel(job.id)
    if end == "succeed":
        leases.succeed(lease, RESULT)
    elif end == "fail":
        leases.fail(lease, BadData("no"))
    elif end == "crash":
        leases.crash(lease, "died")
    else:
        leases.give_up(lease)
    ended = jobs.get(job.id)
    assert (ended.status, ended.result, ended.error) == ("canceled", None, None)


def test_a_worker_that_lost_its_job_can_write_nothing(jobs: Jobs, leases: Leases) -> None:
    jobs.create(new_job())
    zombie = claim(leases)
    leases.give_up(zombie)
    attempts: list[Callable[[], object]] = [
        lambda: leases.record(zombie, trial(0)),
        lambda: leases.heartbeat(zombie),
        lambda: leases.stage(zombie, "searching"),
        lambda: leases.saved(zombie),
        lambda: leases.progress(zombie, 1, 4, None, seconds_left=None),
        lambda: leases.succeed(zombie, RESULT),
        lambda: leases.fail(zombie, BadData("no")),
        lambda: leases.confirm_cancel(zombie),
        lambda: leases.check(zombie),
        lambda: leases.crash(zombie, "died"),
    ]
    for attempt in attempts:  # the job is back in the queue, and nobody has it
        with pytest.raises(Fenced):
            attempt()
    successor = claim(leases)
    for attempt in attempts:  # another worker has claimed the job
        with pytest.raises(Fenced):
            attempt()
    leases.record(successor, trial(0))
    assert (jobs.trial_numbers(successor.job_id), jobs.get(successor.job_id).attempt) == ([0], 2)


def test_take_back_frees_only_jobs_of_servers_that_are_gone(jobs: Jobs, leases: Leases) -> None:
    first, second, third = (jobs.create(new_job()) for _ in range(3))
    leases.claim("dead"), leases.claim("alive"), leases.claim("dead")
    jobs.cancel(third.id)
    assert sorted(leases.take_back(lambda owner: owner == "dead")) == sorted([first.id, third.id])
    assert [jobs.get(job.id).status for job in (first, second, third)] == ["queued", "running", "canceled"]
    assert jobs.get(first.id).crashes == 0


def test_three_deaths_without_a_new_trial_fail_the_job_and_a_new_trial_starts_the_count_again(
    jobs: Jobs, leases: Leases
) -> None:
    job = jobs.create(new_job())
    for number in range(4):
        lease = claim(leases)
        leases.record(lease, trial(number))
        leases.crash(lease, "was killed (signal 9)")
    assert jobs.get(job.id).status == "queued"
    for _ in range(2):
        leases.crash(claim(leases), "was killed (signal 9)")
    failed = jobs.get(job.id)
    assert failed.status == "failed" and failed.error is not None
    assert failed.error["code"] == "worker-crashed"
    assert "signal 9" in failed.error["detail"] and "memory" in failed.error["detail"]
    assert jobs.trial_numbers(job.id) == [0, 1, 2, 3]


def test_an_attempt_that_stored_something_does_not_count_towards_the_limit(jobs: Jobs, leases: Leases) -> None:
    """A training of many epochs would otherwise fail on a machine that is often restarted."""
    job = jobs.create(new_job())
    for _ in range(4):
        lease = claim(leases)
        leases.saved(lease)
        leases.crash(lease, "was killed (signal 9)")
    assert (jobs.get(job.id).status, jobs.get(job.id).crashes) == ("queued", 1)
    for _ in range(2):
        lease = claim(leases)
        leases.stage(lease, "finetuning")  # another start of the same stage is no progress
        leases.crash(lease, "was killed (signal 9)")
    failed = jobs.get(job.id)
    assert failed.status == "failed" and failed.error is not None and failed.error["code"] == "worker-crashed"
    assert "3 times in a row without progress" in failed.error["detail"]


def test_the_number_of_starts_is_a_setting(store: Store, jobs: Jobs) -> None:
    job, leases = jobs.create(new_job()), Leases(store, 30.0, max_crashes=1)
    leases.crash(claim(leases), "was killed (signal 9)")
    assert jobs.get(job.id).status == "failed"


def test_a_trial_number_is_kept_once_and_nan_is_refused(jobs: Jobs, leases: Leases) -> None:
    jobs.create(new_job())
    lease = claim(leases)
    leases.record(lease, trial(1))
    leases.record(lease, trial(0))
    with pytest.raises(ValueError, match="recorded before"):
        leases.record(lease, trial(1))
    with pytest.raises(ValueError):
        leases.record(lease, {"number": 2, "score": float("nan")})
    assert [row["number"] for row in leases.trials(lease.job_id)] == [0, 1]


def test_only_finished_jobs_are_deleted_and_their_trials_go_with_them(jobs: Jobs, leases: Leases) -> None:
    job = jobs.create(new_job())
    with pytest.raises(Conflict, match="cancel it first"):
        jobs.delete(job.id)
    lease = claim(leases)
    leases.record(lease, trial(0))
    leases.succeed(lease, RESULT)
    jobs.delete(job.id)
    assert leases.trials(job.id) == []
    with pytest.raises(NotFound):
        jobs.get(job.id)


def test_a_child_starts_with_its_parents_trials_and_outlives_it(jobs: Jobs, leases: Leases) -> None:
    parent = jobs.create(new_job())
    lease = claim(leases)
    leases.record(lease, trial(0))
    leases.succeed(lease, RESULT)
    child = jobs.create(NewJob(parent.request, trials_of=parent.id, deliver_trial=0))
    assert jobs.get(child.id).parent_job_id == parent.id
    jobs.delete(parent.id)
    assert (jobs.get(child.id).parent_job_id, jobs.trial_numbers(child.id)) == (None, [0])


def test_an_idempotency_key_belongs_to_one_job_of_each_owner(jobs: Jobs) -> None:
    keyed = dataclasses.replace(new_job(), idempotency_key="k", request_digest="d")
    first = jobs.create(keyed)
    with pytest.raises(KeyTaken):
        jobs.create(dataclasses.replace(keyed, id="job_other"))
    jobs.create(dataclasses.replace(keyed, id="job_another_owner", owner="someone"))
    found = jobs.with_key("", "k")
    assert found is not None and found.id == first.id


def test_a_job_for_a_model_that_is_gone_is_a_conflict(jobs: Jobs) -> None:
    with pytest.raises(Conflict, match="deleted meanwhile"):
        jobs.create(new_job(model="mdl_gone"))
