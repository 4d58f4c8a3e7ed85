"""The operations of runners and workers on jobs: claim with a lease, heartbeat, fenced writes, finish, requeue.

A claim returns a lease with a fencing token (the fence). Every write of a worker passes its fence. Once the job has
been requeued or claimed again, writes with the old fence raise `Fenced`. A worker that was suspended for longer than
its lease can therefore change nothing.

Lease expiry never compares dates. Each server watches whether a lease is renewed (service/core/monotonic_time.py). The
column `lease_expires_at` changes with each renewal; apart from that it is only for people to read.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from vitfit.report import JobResult

from models.errors import Canceled, VitfitError
from service.core.errors import TimeLimitReached, WorkerCrashed
from service.core.monotonic_time import Stopwatch
from service.db.engine import clock, one_at_a_time
from service.db.job_states import LEASED, UNFINISHED, move
from service.db.tables import JobRow, Store, TrialRow
from service.jobs.journal import Fenced

MOST_RUNNING = 1_000
START_S = 60.0  # a worker on a busy machine may need this many seconds before its first heartbeat


@dataclass(frozen=True)
class Lease:
    """The right to work on a job. It ends when the job is requeued or finished, or gets a new fence."""

    job_id: str
    fence: int
    request_id: str | None = field(default=None, compare=False)
    """The id of the HTTP request that created the job, for the log."""


class Leases:
    """Operations of runners and workers on the jobs table."""

    def __init__(
        self,
        store: Store,
        lease_s: float,
        max_crashes: int = 3,
        most_running: int = MOST_RUNNING,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the limits.

        Args:
            store: the database.
            lease_s: seconds after which a lease that was not renewed expires.
            max_crashes: number of crashes in a row without progress (see `saved`) after which a job fails.
            most_running: upper limit on the running jobs of one owner.
            clock: returns seconds of a monotonic clock; for expiry of leases and time limits.
        """
        self._store, self._most_running = store, most_running
        self._lease = timedelta(seconds=lease_s)
        self._max_crashes = max_crashes
        self._renewals, self._runs = Stopwatch(clock), Stopwatch(clock)

    def claim(self, owner: str) -> Lease | None:
        """Claim the oldest queued job of the highest priority.

        Owners who already run their maximum number of jobs are skipped.

        owner: the process that claims the job. Returns: the lease, or None when there is no such job.
        """
        busy = select(JobRow.owner).where(JobRow.status.in_(LEASED)).group_by(JobRow.owner)
        queued = select(JobRow).where(
            JobRow.status == "queued", JobRow.owner.not_in(busy.having(func.count() >= self._most_running))
        )
        query = queued.order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id).limit(1)
        with self._store.read() as session:  # idle servers ask often and must not block writers
            if session.scalar(select(JobRow.id).where(JobRow.status == "queued").limit(1)) is None:
                return None
        with self._store.write() as session:
            one_at_a_time(session, "claim")  # the per-owner count must not change between this query and the update
            job = session.scalar(query.with_for_update(skip_locked=True))  # skips a job that a user is just canceling
            if job is None:
                return None
            move(job, "running")
            job.attempt += 1
            job.fence += 1
            job.lease_owner = owner
            job.lease_expires_at = clock(session) + max(self._lease, timedelta(seconds=START_S))
            self._renewals.look((job.id, job.fence), job.lease_expires_at)  # from now on, every change is a renewal
            return Lease(job.id, job.fence, job.request_id)

    def queued(self) -> int:
        """Count the jobs that wait for a worker."""
        with self._store.read() as session:
            return session.scalar(select(func.count()).where(JobRow.status == "queued")) or 0

    def job(self, lease: Lease) -> JobRow:
        """Return the row of the leased job. Raises: Fenced."""
        with self._store.read() as session:
            return _held(session, lease, lock=False)

    def check(self, lease: Lease) -> None:
        """Raises: Canceled when the user has canceled the job; Fenced when the lease is lost."""
        if self.job(lease).status == "canceling":
            raise Canceled("The job was canceled.")

    def heartbeat(self, lease: Lease) -> None:
        """Renew the lease. Raises: Fenced."""
        with self._writing(lease) as (session, job):
            job.lease_expires_at = clock(session) + self._lease

    def trials(self, job_id: str) -> list[dict[str, Any]]:
        """Return the finished trials in the order of their numbers."""
        with self._store.read() as session:
            query = select(TrialRow.body).where(TrialRow.job_id == job_id).order_by(TrialRow.number)
            return list(session.scalars(query))

    def record(self, lease: Lease, trial: dict[str, Any], repeated: bool = False) -> None:
        """Store a finished trial.

        repeated: this is a retry, and the failed call may already have stored the same trial. Only then is it no
        error if this trial is stored already.

        Raises: Fenced; ValueError when another trial has its number, or when a value is not valid JSON (such as NaN).
        """
        json.dumps(trial, allow_nan=False)
        try:
            with self._writing(lease) as (session, job):
                known = session.get(TrialRow, (lease.job_id, int(trial["number"]))) if repeated else None
                if known is not None:
                    if known.body != json.loads(json.dumps(trial)):
                        raise ValueError(f"trial {trial['number']} was recorded before")
                    return
                session.add(TrialRow(job_id=lease.job_id, number=int(trial["number"]), body=trial))
                job.crashes = 0
        except IntegrityError as error:
            raise ValueError(f"trial {trial['number']} was recorded before") from error

    def saved(self, lease: Lease) -> None:
        """Begin the count of crashes anew, because the next attempt can continue from something new. Raises: Fenced."""
        with self._writing(lease) as (_, job):
            job.crashes = 0

    def stage(self, lease: Lease, name: str) -> None:
        """Store the stage that begins. Raises: Fenced."""
        with self._writing(lease) as (_, job):
            job.stage = name
            job.progress = {key: value for key, value in job.progress.items() if key != "note"}

    def note(self, lease: Lease, words: str) -> None:
        """Store what the job does now. The next stage or progress removes it. Raises: Fenced."""
        with self._writing(lease) as (_, job):
            job.progress = {**job.progress, "note": words or None}

    def progress(self, lease: Lease, done: int, total: int, best: float | None, *, seconds_left: float | None) -> None:
        """Store the progress of the search. Raises: Fenced."""
        with self._writing(lease) as (_, job):
            values = {"trials_done": done, "trials_total": total, "best_score": best, "seconds_left": seconds_left}
            job.progress = _finite(values)

    def succeed(self, lease: Lease, result: JobResult) -> None:
        """Store the result. A job that was canceled meanwhile becomes canceled instead. Raises: Fenced."""
        with self._writing(lease) as (_, job):
            if job.status == "canceling":
                move(job, "canceled")
                return
            job.guarantee = result.guarantee
            job.result = _finite(result.to_json())
            move(job, "succeeded")

    def fail(self, lease: Lease, error: VitfitError) -> None:
        """Store the error of a failed job.

        A job that was canceled meanwhile becomes canceled instead. Raises: Fenced.
        """
        with self._writing(lease) as (_, job):
            _fail(job, error)

    def confirm_cancel(self, lease: Lease) -> None:
        """Store that the work has stopped after the user canceled the job. Raises: Fenced."""
        with self._writing(lease) as (_, job):
            move(job, "canceled")

    def give_up(self, lease: Lease) -> None:
        """Requeue a job whose worker was stopped for a reason outside the job.

        A canceled job becomes canceled. Raises: Fenced.
        """
        with self._writing(lease) as (_, job):
            _requeue(job)

    def crash(self, lease: Lease, how: str, why: VitfitError | None = None) -> None:
        """Requeue a job whose worker died.

        After `max_crashes` crashes in a row without progress (see `saved`), the job fails instead.

        Args:
            lease: the lease of the worker that died.
            how: how the worker died, as the end of a sentence that starts with "The process of the job".
            why: the error with which the job then fails; None: an error that says how the worker died.

        Raises: Fenced.
        """
        with self._writing(lease) as (session, job):
            self._after_crash(session, job, how, why)

    def expire(self) -> list[Lease]:
        """Requeue the jobs whose lease has expired, and return these leases. Call this about once per second."""
        with self._store.read() as session:  # a check that finds nothing must not block writers
            jobs = list(session.scalars(select(JobRow).where(JobRow.status.in_(LEASED))))
        self._renewals.keep({(job.id, job.fence) for job in jobs})
        silent = [job.id for job in jobs if self._is_silent(job)]
        if not silent:
            return []
        with self._store.write() as session:
            query = (
                select(JobRow).where(JobRow.id.in_(silent), JobRow.status.in_(LEASED)).with_for_update(skip_locked=True)
            )
            # The worker may have renewed it since the first check.
            lost = [job for job in session.scalars(query) if self._is_silent(job)]
            for job in lost:
                self._after_crash(session, job, "did not renew its lease in time")
            return [Lease(job.id, job.fence, job.request_id) for job in lost]

    def _is_silent(self, job: JobRow) -> bool:
        since_s, renewals = self._renewals.look((job.id, job.fence), job.lease_expires_at)
        lease_s = self._lease.total_seconds()
        return since_s > (lease_s if renewals else max(lease_s, START_S))

    def fail_overdue(self) -> list[str]:
        """Fail the jobs that have exceeded their time limit, and return their ids. Their workers lose their leases."""
        limited = JobRow.status.in_(UNFINISHED), JobRow.time_limit_s.is_not(None), JobRow.started_at.is_not(None)
        with self._store.read() as session:
            jobs = list(session.scalars(select(JobRow).where(*limited)))
            self._runs.keep({job.id for job in jobs})
            at = clock(session) if jobs else None
        overdue = [job.id for job in jobs if at and self._is_overdue(job, at)]
        if not overdue:
            return []
        with self._store.write() as session:
            query = select(JobRow).where(JobRow.id.in_(overdue), JobRow.status == "running")
            ended = list(session.scalars(query.with_for_update(skip_locked=True)))
            for job in ended:
                _fail(
                    job,
                    TimeLimitReached(
                        f"The job had not ended {job.time_limit_s:g} s after its first start, which is its time limit. "
                        "Give the job a larger time_limit_s, fewer trials or less data. Its finished trials can be "
                        "delivered.",
                        time_limit_s=job.time_limit_s,
                    ),
                )
            return [job.id for job in ended]

    def _is_overdue(self, job: JobRow, at: datetime) -> bool:
        assert job.time_limit_s is not None and job.started_at is not None
        # Only the dates know how long the job ran before this server started.
        before_s = max(0.0, (at - job.started_at).total_seconds())
        return self._runs.look(job.id, already_s=before_s)[0] > job.time_limit_s

    def take_back(self, is_gone: Callable[[str], bool]) -> list[str]:
        """Requeue the leased jobs of servers that have ended, without waiting for lease expiry, and return their ids.

        is_gone: says whether the process that owns a lease has ended.
        """
        with self._store.write() as session:
            # The same lock order on all servers avoids deadlocks.
            query = select(JobRow).where(JobRow.status.in_(LEASED)).order_by(JobRow.id)
            jobs = session.scalars(query.with_for_update())
            orphans = [job for job in jobs if job.lease_owner is None or is_gone(job.lease_owner)]
            for job in orphans:
                _requeue(job)
            return [job.id for job in orphans]

    @contextmanager
    def _writing(self, lease: Lease) -> Iterator[tuple[Session, JobRow]]:
        with self._store.write() as session:
            yield session, _held(session, lease)

    def _after_crash(self, session: Session, job: JobRow, how: str, why: VitfitError | None = None) -> None:
        job.crashes += 1
        job.crashed_with_trials = session.scalar(select(func.count()).where(TrialRow.job_id == job.id)) or 0
        if job.crashes >= self._max_crashes:
            _fail(job, why or _repeated_crash(job, how))
        else:
            _requeue(job)


def _held(session: Session, lease: Lease, lock: bool = True) -> JobRow:
    job = session.get(JobRow, lease.job_id, with_for_update=lock)
    if job is None or job.fence != lease.fence or job.status not in LEASED:
        raise Fenced(f"Job {lease.job_id} no longer belongs to this worker, because its fence {lease.fence} is old.")
    return job


def _requeue(job: JobRow) -> None:
    move(job, "canceled" if job.status == "canceling" else "queued")


def _fail(job: JobRow, error: VitfitError) -> None:
    if job.status == "canceling":
        move(job, "canceled")
        return
    job.error = _finite(error.to_json())
    move(job, "failed")


def _repeated_crash(job: JobRow, how: str) -> WorkerCrashed:
    return WorkerCrashed(
        f"The process of the job {how}. It has now died {job.crashes} times in a row without progress, so it is not "
        "started again. A common reason is that the machine has too little memory. Try a smaller model, "
        "batch or data set.",
        attempts=job.attempt,
        trials=job.crashed_with_trials,
    )


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None, because JSON has neither.

    Otherwise one such number would make it impossible to store a finished job.
    """
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
