"""The operations of users on jobs: create, look up, cancel, delete.

The operations of workers (claim, heartbeat, fenced writes, finish, requeue) are in service/jobs/leases.py.
"""

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, func, insert, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.core.errors import Conflict, NotFound, TooMany
from service.db.engine import one_at_a_time
from service.db.job_states import FINISHED, TRANSITIONS, UNFINISHED, move
from service.db.tables import JobRow, RemovalRow, Store, TrialRow, now

MOST_UNFINISHED: Final = 10_000


def no_progress(total: int) -> dict[str, Any]:
    """Return the progress of a job that has not started. `total` is its number of trials."""
    return {"trials_done": 0, "trials_total": total, "best_score": None, "seconds_left": None}


@dataclass(frozen=True)
class NewJob:
    """The arguments of `Jobs.create`.

    `trials_of` is the id of an earlier job. The new job starts with a copy of its trials, and delivers one of them.
    """

    request: dict[str, Any]
    owner: str = ""
    idempotency_key: str | None = None
    request_digest: str | None = None
    trials_of: str | None = None
    deliver_trial: int | None = None
    request_id: str | None = None
    id: str = field(default_factory=lambda: f"job_{secrets.token_hex(10)}")
    created_at: datetime = field(default_factory=now)

    def row(self) -> JobRow:
        return JobRow(
            id=self.id,
            owner=self.owner,
            name=self.request.get("name"),
            request=self.request,
            model_id=self.request["model"],
            dataset_id=self.request.get("dataset"),
            parent_job_id=self.trials_of,
            deliver_trial=self.deliver_trial,
            idempotency_key=self.idempotency_key,
            request_digest=self.request_digest,
            request_id=self.request_id,
            progress=no_progress(int(self.request.get("trials", 0))),
            status="queued",
            priority=int(self.request.get("priority", 0)),
            time_limit_s=self.request.get("time_limit_s"),
            attempt=0,
            fence=0,
            created_at=self.created_at,
        )


class Jobs:
    """Operations of users on the jobs table."""

    def __init__(self, store: Store, most_unfinished: int = MOST_UNFINISHED) -> None:
        """most_unfinished: upper limit on the unfinished jobs of one owner."""
        self._store, self._most_unfinished = store, most_unfinished

    def create(self, new: NewJob, first_answer: dict[str, Any] | None = None) -> JobRow:
        """Queue a job.

        Raises: Conflict when its model or data set was deleted; KeyTaken when its Idempotency-Key belongs to another
        job; TooMany when the owner has reached the limit on unfinished jobs.
        """
        row = new.row()
        row.first_answer = first_answer
        try:
            with self._store.write() as session:
                one_at_a_time(session, f"new jobs of {new.owner}")
                self._check_room(session, new.owner)
                session.add(row)
                session.flush()
                if new.trials_of:
                    _copy_trials(session, new.trials_of, new.id)
        except IntegrityError as error:
            raise _why_not_created(self._store, new) from error
        return row

    def _check_room(self, session: Session, owner: str) -> None:
        unfinished = select(func.count()).where(JobRow.owner == owner, JobRow.status.in_(UNFINISHED))
        waiting = session.scalar(unfinished) or 0
        if waiting >= self._most_unfinished:
            raise TooMany(
                f"You have {waiting} unfinished jobs, but this server accepts only {self._most_unfinished} from one "
                "person. Wait until some have ended, or cancel some.",
                unfinished=waiting,
                allowed=self._most_unfinished,
            )

    def with_key(self, owner: str, key: str) -> JobRow | None:
        """Return the job that was created with this Idempotency-Key, or None."""
        with self._store.read() as session:
            return session.scalar(select(JobRow).where(JobRow.owner == owner, JobRow.idempotency_key == key))

    def get(self, job_id: str, owner: str | None = None) -> JobRow:
        """Return the row of a job.

        owner: the caller; None may see the jobs of all owners. Raises: NotFound, also for a job of another owner.
        """
        with self._store.read() as session:
            return _require(session, job_id, owner)

    def trial_numbers(self, job_id: str) -> list[int]:
        """Return the numbers of the job's finished trials, ascending."""
        with self._store.read() as session:
            query = select(TrialRow.number).where(TrialRow.job_id == job_id).order_by(TrialRow.number)
            return list(session.scalars(query))

    def counts(self) -> dict[str, int]:
        """Count the jobs in each unfinished state."""
        with self._store.read() as session:
            query = select(JobRow.status, func.count()).where(JobRow.status.in_(UNFINISHED)).group_by(JobRow.status)
            found = {status: count for status, count in session.execute(query)}
        return {status: found.get(status, 0) for status in UNFINISHED}

    def totals(self) -> tuple[dict[str, int], int]:
        """Count the jobs in each state, and the finished trials of all jobs."""
        with self._store.read() as session:
            found = session.execute(select(JobRow.status, func.count()).group_by(JobRow.status))
            counts = {status: count for status, count in found}
            trials = session.scalar(select(func.count()).select_from(TrialRow)) or 0
        return {status: counts.get(status, 0) for status in TRANSITIONS}, trials

    def cancel(self, job_id: str, owner: str | None = None) -> JobRow:
        """Cancel a job, or ask its worker to stop it.

        The call is allowed in every state and may be repeated. It changes nothing for a finished job. Raises: NotFound.
        """
        with self._store.write() as session:
            job = _require(session, job_id, owner, lock=True)
            if job.status == "queued":
                move(job, "canceled")
            elif job.status == "running":
                move(job, "canceling")
            return job

    def delete(self, job_id: str, owner: str | None = None) -> None:
        """Delete the rows of a finished job and its trials. Raises: NotFound; Conflict when the job is not finished."""
        with self._store.write() as session:
            job = _require(session, job_id, owner, lock=True)
            if job.status not in FINISHED:
                raise Conflict(
                    f"Job {job_id} is {job.status}. Only finished jobs can be deleted. "
                    "Wait until it has ended, or cancel it first.",
                    job=job_id,
                    status=job.status,
                )
            session.execute(delete(JobRow).where(JobRow.id == job_id))
            session.add(RemovalRow(job_id=job_id))


def _require(session: Session, job_id: str, owner: str | None, lock: bool = False) -> JobRow:
    job = session.get(JobRow, job_id, with_for_update=lock)
    if job is None or owner not in (None, job.owner):
        raise NotFound("job", job_id)
    return job


def _copy_trials(session: Session, source: str, target: str) -> None:
    rows = select(literal(target), TrialRow.number, TrialRow.body, TrialRow.created_at)
    session.execute(
        insert(TrialRow).from_select(["job_id", "number", "body", "created_at"], rows.where(TrialRow.job_id == source))
    )


def _why_not_created(store: Store, new: NewJob) -> Conflict:
    with store.read() as session:
        taken = new.idempotency_key is not None and session.scalar(
            select(JobRow.id).where(JobRow.owner == new.owner, JobRow.idempotency_key == new.idempotency_key)
        )
    if taken:
        return KeyTaken("Another request with this Idempotency-Key has already created a job.", job=taken)
    return Conflict("The model or the data set of the job was deleted meanwhile. Upload it again, or use another one.")


class KeyTaken(Conflict):
    """The Idempotency-Key already belongs to a job. The caller of `Jobs.create` answers with that job."""
