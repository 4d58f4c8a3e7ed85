"""Report a job as a stream of server-sent events: each finished trial once, and the job whenever it has changed.

The id of an event is the number of trials sent so far. A client that reconnects with `Last-Event-ID` therefore
continues where its connection broke. This also works after a restart of the server, because events are read from the
database only.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from service.api.schemas import JobView
from service.db.job_states import FINISHED
from service.db.tables import Store, TrialRow
from service.jobs.job_store import Jobs

LOOK_S = 0.5
Event = dict[str, Any]


async def events(store: Store, jobs: Jobs, job_id: str, owner: str | None, *, told: int) -> AsyncIterator[Event]:
    """Yield the events of a job until it has ended and all its trials are sent.

    told: number of trials that the client already has.

    Raises: NotFound if the job is deleted in the meantime.
    """
    before: str | None = None
    while True:
        # The job is read before its trials, so that the last trials of a finished job are not missed.
        job = await run_in_threadpool(jobs.get, job_id, owner)
        for trial in await run_in_threadpool(_trials_from, store, job_id, told):
            told += 1
            yield _event("trial", told, trial)
        shown = JobView.of(job).model_dump(mode="json")
        now = json.dumps(shown)
        if now != before:
            before = now
            yield _event("job", told, shown)
        if job.status in FINISHED:
            return
        await asyncio.sleep(LOOK_S)


def _trials_from(store: Store, job_id: str, told: int) -> list[dict[str, Any]]:
    query = select(TrialRow.body).where(TrialRow.job_id == job_id).order_by(TrialRow.number).offset(told)
    with store.read() as session:
        return list(session.scalars(query))


def _event(kind: str, told: int, body: dict[str, Any]) -> Event:
    return {"event": kind, "id": str(told), "data": json.dumps(body)}
