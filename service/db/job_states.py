"""The states of a job, and the allowed transitions between them.

queued ----> running ----> succeeded | failed
  |  ^----------|  (requeue: worker or server died)
  v             v
canceled <-- canceling
"""

from typing import Final, Literal

from sqlalchemy.orm import object_session

from service.db.engine import clock
from service.db.tables import JobRow

Status = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled"]

TRANSITIONS: Final[dict[str, tuple[str, ...]]] = {
    "queued": ("running", "canceled"),
    "running": ("queued", "canceling", "succeeded", "failed"),
    "canceling": ("canceled",),
    "succeeded": (),
    "failed": (),
    "canceled": (),
}
FINISHED: Final = tuple(status for status, nexts in TRANSITIONS.items() if not nexts)
UNFINISHED: Final = tuple(status for status, nexts in TRANSITIONS.items() if nexts)
LEASED: Final = ("running", "canceling")


def move(job: JobRow, status: str) -> None:
    """Change the status of a job, and set the times that belong to the new status.

    No other code assigns `status`. The caller's session must have locked the row.

    Raises: ValueError when `TRANSITIONS` does not allow the change.
    """
    if status not in TRANSITIONS[job.status]:
        raise ValueError(f"a job that is {job.status} cannot become {status}")
    job.status = status
    session = object_session(job)
    assert session is not None
    at = clock(session)
    if status == "running" and job.started_at is None:
        job.started_at = at
    if status == "canceling":
        job.cancel_asked_at = at
    if status not in LEASED:
        job.lease_owner = job.lease_expires_at = None
    if status in FINISHED:
        job.finished_at = at
