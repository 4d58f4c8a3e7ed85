"""A job as a stream of events: every finished trial once, and the job whenever it has changed.

An event's id is the number of trials that were told so far, so `Last-Event-ID` continues where a connection broke off, on this server
or after its restart: nothing but the database is behind it.
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


async def events(store: Store, jobs: Jobs, job_id: str, owner: str | None, told: int) -> AsyncIterator[Event]:
    """Until the job has ended and everything is told. told: trials that the listener has already.

    Raises: NotFound when the job is deleted meanwhile.
    """
    before: str | None = None
    while True:
        job = await run_in_threadpool(jobs.get, job_id, owner)  # before its trials: the last ones are not missed
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
