"""/v1/jobs: submit, follow, cancel, deliver."""

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
from service.db.job_states import UNFINISHED, Status
from service.db.tables import JobRow
from service.jobs.job_request import JobRequest

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

LOG_BYTES = 100_000
POLL_S = 1  # what Retry-After says to those who wait for a job
KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Repeating a request with its key gives the first answer again and no second job.",
    ),
]
NOT_CHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "If-None-Match names the job as it is now."}}
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobView,
        "description": "The job, queued.",
        "headers": {
            "Location": {"schema": {"type": "string"}, "description": "Address of the job."},
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds until it is worth asking."},
        },
    }
}


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses={**ACCEPTED, 200: {"model": Validated, "description": "validate_only=true: nothing was created."}},
)
async def create_job(
    body: Annotated[JobRequest, Body(openapi_examples={"latency": {"value": JOB_EXAMPLE}})],
    service: ServiceOf,
    caller: Submitter,
    validate_only: Annotated[bool, Query(description="Check the request and create nothing.")] = False,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Queue a compression. Names, budget and data are checked first, for at most a few seconds."""
    if validate_only:
        return JSONResponse((await service.submissions.validate(body, caller)).model_dump(mode="json"))
    await run_in_threadpool(service.retention.check_room)
    submitted = await service.submissions.submit(body, idempotency_key, caller)
    service.runner.wake()
    return _accepted(submitted)


@router.get("")
def list_jobs(
    service: ServiceOf,
    caller: Reader,
    page: PageQuery,
    status: Annotated[Status | None, Query(description="Only jobs in this state.")] = None,
) -> JobPage:
    """Your jobs, newest first."""
    where = [*mine(JobRow, caller), *([JobRow.status == status] if status else [])]
    rows, token = newest_first(service.store, JobRow, page, f"jobs {status or ''}", *where)
    return JobPage(jobs=[JobView.of(row) for row in rows], next_page_token=token)


@router.get("/{job_id}", response_model=JobView, responses=NOT_CHANGED)
async def get_job(job_id: str, request: Request, service: ServiceOf, caller: Reader) -> Response:
    """A job as it is now. While it is not finished, Retry-After says when to ask again; with If-None-Match, 304 says: as before."""
    job = await run_in_threadpool(service.jobs.get, job_id, caller.sees)
    body = (
        JobView.of(job).model_dump_json().encode()
    )  # as it is sent: the framework would check and encode it once more
    headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"', "Cache-Control": "no-cache"}
    if job.status in UNFINISHED:
        headers["Retry-After"] = str(POLL_S)
    if is_known(headers["ETag"], request):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.delete("/{job_id}", status_code=204)
def delete_job(job_id: str, service: ServiceOf, caller: Submitter) -> None:
    """Delete a finished job, its trials and its files; 409 while it is not finished."""
    service.jobs.delete(job_id, caller.sees)
    service.retention.forget_files(job_id)


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, service: ServiceOf, caller: Submitter) -> JobView:
    """Stop a job. It may be repeated and works in any state; a finished job is given back as it is."""
    job = service.jobs.cancel(job_id, caller.sees)
    service.runner.wake()
    return JobView.of(job)


@router.get("/{job_id}/trials")
def list_trials(job_id: str, service: ServiceOf, caller: Reader, page: PageQuery) -> TrialPage:
    """The finished trials in the order of their numbers."""
    service.jobs.get(job_id, caller.sees)
    trials, token = trials_in_order(service.store, job_id, page)
    return TrialPage(trials=trials, next_page_token=token)


@router.post("/{job_id}/deliver", status_code=202, response_model=JobView, responses=ACCEPTED)
async def deliver_trial(
    job_id: str, body: DeliverRequest, service: ServiceOf, caller: Submitter, idempotency_key: KeyHeader = None
) -> Response:
    """Deliver another trial of the same search: a child job, without a new search."""
    submitted = await service.submissions.deliver(job_id, body.trial, idempotency_key, caller)
    service.runner.wake()
    return _accepted(submitted)


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def job_events(
    job_id: str,
    service: ServiceOf,
    caller: Reader,
    last_event_id: Annotated[
        int, Header(alias="Last-Event-ID", ge=0, le=MAX_NUMBER, description="Continue after this event.")
    ] = 0,
) -> EventSourceResponse:
    """Server-sent events: `trial` for each finished trial, `job` whenever the job has changed; the stream ends with the job."""
    await run_in_threadpool(service.jobs.get, job_id, caller.sees)  # 404 before the stream begins
    stream = events(service.store, service.jobs, job_id, caller.sees, last_event_id)
    return EventSourceResponse(stream, ping=15)


@router.get("/{job_id}/log", response_class=PlainTextResponse)
def job_log(job_id: str, service: ServiceOf, caller: Reader) -> PlainTextResponse:
    """The end of what the job's processes have written."""
    service.jobs.get(job_id, caller.sees)
    path = service.folder.job(job_id).log
    if not path.exists():  # another server ran it
        for file in service.storage.files(log_key(job_id)) if service.storage.is_shared else ():
            path = service.storage.file(log_key(job_id), file)
    return PlainTextResponse(tail(path, LOG_BYTES))


def _accepted(submitted: Submitted) -> Response:
    headers = {"Location": f"/v1/jobs/{submitted.job_id}", "Retry-After": str(POLL_S)}
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse(submitted.job, 202, headers)
