"""/v1/jobs: the endpoints that submit, follow, cancel, deliver and delete jobs."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool

from service.api.artifacts import is_known
from service.api.auth import Reader, Submitter
from service.api.context import ServiceOf
from service.api.events import events
from service.api.paging import MAX_NUMBER, PageQuery, mine, newest_first, trials_in_order
from service.api.schemas import JOB_EXAMPLE, DeliverRequest, JobPage, JobView, TrialPage, Validated
from service.api.submission import Submitted
from service.core.data_folder import log_key, tail
from service.core.hidden_paths import HiddenPaths
from service.db.job_states import UNFINISHED, Status
from service.db.tables import JobRow
from service.jobs.job_request import JobRequest

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

LOG_BYTES = 100_000
POLL_S = 1  # value of Retry-After for clients that wait for a job
KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="A key that the client chooses. If the client repeats the request with the same key, it gets the "
        "first answer again, and the server creates no second job.",
    ),
]
NOT_CHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The job has not changed: If-None-Match contains its ETag."}
}
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobView,
        "description": "The new job, which is queued.",
        "headers": {
            "Location": {"schema": {"type": "string"}, "description": "Address of the job."},
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds until the next poll."},
        },
    }
}


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses={
        **ACCEPTED,
        200: {"model": Validated, "description": "The answer to validate_only=true. No job was created."},
    },
)
async def create_job(
    body: Annotated[JobRequest, Body(openapi_examples={"latency": {"value": JOB_EXAMPLE}})],
    service: ServiceOf,
    caller: Submitter,
    validate_only: Annotated[bool, Query(description="Check the request, and create no job.")] = False,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Queue a compression job. The server first checks names, budgets and data, for at most a few seconds."""
    if validate_only:
        return JSONResponse((await service.submissions.validate(body, caller)).model_dump(mode="json"))
    await run_in_threadpool(service.retention.room.check)
    submitted = await service.submissions.submit(body, idempotency_key, caller)
    service.runner.wake()
    return _accepted(submitted)


@router.get("")
def list_jobs(
    service: ServiceOf,
    caller: Reader,
    page: PageQuery,
    status: Annotated[Status | None, Query(description="Return only jobs with this status.")] = None,
) -> JobPage:
    """List your jobs, newest first."""
    where = [*mine(JobRow, caller), *([JobRow.status == status] if status else [])]
    rows, token = newest_first(service.store, JobRow, page, f"jobs {status or ''}", *where)
    return JobPage(jobs=[JobView.of(row) for row in rows], next_page_token=token)


@router.get("/{job_id}", response_model=JobView, responses=NOT_CHANGED)
async def get_job(job_id: str, request: Request, service: ServiceOf, caller: Reader) -> Response:
    """Return the current state of a job.

    While the job is not finished, Retry-After gives the seconds until the next poll. With If-None-Match, the answer is
    304 if the job has not changed.
    """
    job = await run_in_threadpool(service.jobs.get, job_id, caller.sees)
    # The body is encoded here, because the framework would validate and encode it a second time.
    body = JobView.of(job).model_dump_json().encode()
    headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"', "Cache-Control": "no-cache"}
    if job.status in UNFINISHED:
        headers["Retry-After"] = str(POLL_S)
    if is_known(headers["ETag"], request):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.delete("/{job_id}", status_code=204)
def delete_job(job_id: str, service: ServiceOf, caller: Submitter) -> None:
    """Delete a finished job with its trials and files. 409 while the job is not finished."""
    service.jobs.delete(job_id, caller.sees)
    service.retention.forget_files(job_id)


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, service: ServiceOf, caller: Submitter) -> JobView:
    """Cancel a job. The call works in any state and can be repeated; a finished job is returned unchanged."""
    job = service.jobs.cancel(job_id, caller.sees)
    service.runner.wake()
    return JobView.of(job)


@router.get("/{job_id}/trials")
def list_trials(job_id: str, service: ServiceOf, caller: Reader, page: PageQuery) -> TrialPage:
    """List the finished trials of a job, ordered by number."""
    service.jobs.get(job_id, caller.sees)
    trials, token = trials_in_order(service.store, job_id, page)
    return TrialPage(trials=trials, next_page_token=token)


@router.post("/{job_id}/deliver", status_code=202, response_model=JobView, responses=ACCEPTED)
async def deliver_trial(
    job_id: str, body: DeliverRequest, service: ServiceOf, caller: Submitter, idempotency_key: KeyHeader = None
) -> Response:
    """Deliver another trial of the same search. This creates a child job, which does not search again."""
    submitted = await service.submissions.deliver(job_id, body.trial, idempotency_key, caller)
    service.runner.wake()
    return _accepted(submitted)


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def job_events(
    job_id: str,
    service: ServiceOf,
    caller: Reader,
    last_event_id: Annotated[
        int,
        Header(
            alias="Last-Event-ID",
            ge=0,
            le=MAX_NUMBER,
            description="The id of the last event that the client has received. The stream continues after it.",
        ),
    ] = 0,
) -> EventSourceResponse:
    """Stream the job as server-sent events.

    A `trial` event is sent for each finished trial, and a `job` event whenever the job has changed. The stream ends
    when the job is finished.
    """
    # Raises the 404 for an unknown job now: after the stream has begun, the status can no longer change.
    await run_in_threadpool(service.jobs.get, job_id, caller.sees)
    stream = events(service.store, service.jobs, job_id, caller.sees, told=last_event_id)
    return EventSourceResponse(stream, ping=15)


@router.get("/{job_id}/log", response_class=PlainTextResponse)
def job_log(job_id: str, service: ServiceOf, caller: Reader) -> PlainTextResponse:
    """Return the last part of the job's log, at most 100,000 bytes."""
    service.jobs.get(job_id, caller.sees)
    path = service.folder.job(job_id).log
    if not path.exists():  # another server ran the job
        for file in service.storage.files(log_key(job_id)) if service.storage.is_shared else ():
            path = service.storage.file(log_key(job_id), file)
    return PlainTextResponse(HiddenPaths.of(service.settings).text(tail(path, LOG_BYTES)))


def _accepted(submitted: Submitted) -> Response:
    headers = {"Location": f"/v1/jobs/{submitted.job_id}", "Retry-After": str(POLL_S)}
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse(submitted.job, 202, headers)
