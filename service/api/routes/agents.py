"""/v1/agents: the endpoints for `vitfit agent`, which measures on a remote device.

Every endpoint needs an access token with the scope agent.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import FileResponse

from latency.devices.mailbox import Mailbox
from service.api.agents import AgentRequest, MeasuringAnswer, Registered
from service.api.auth import require
from service.api.context import ServiceOf
from service.api.identity import Caller
from service.core.errors import NotFound


def mailbox_of(
    device: str, service: ServiceOf, session: Annotated[str, Header(alias="Vitfit-Session", max_length=100)]
) -> Mailbox:
    return service.agents.mailbox(device, session)


router = APIRouter(prefix="/v1/agents", tags=["agents"], dependencies=[Depends(require("agent"))])
MailboxOf = Annotated[Mailbox, Depends(mailbox_of)]


@router.post("", status_code=201)
def register(
    request: AgentRequest, service: ServiceOf, caller: Annotated[Caller, Depends(require("agent"))]
) -> Registered:
    """Register a device, so that GET /v1/devices lists it, or take it over from the previous agent."""
    return service.agents.register(request, caller.owner)


@router.get("/{device}/task", responses={204: {"description": "There is no task now. Ask again."}}, response_model=None)
async def next_task(
    mailbox: MailboxOf, service: ServiceOf, wait_s: Annotated[float, Query(ge=0, le=60)] = 25.0
) -> dict[str, Any] | Response:
    """Return the next task to measure. The request waits up to `wait_s` seconds for one (long polling)."""
    task = await service.agents.task(mailbox, wait_s)
    return Response(status_code=204) if task is None else {"id": task.id, **task.request}


@router.get("/{device}/tasks/{task}/files/{sha256}", response_class=FileResponse)
def task_file(task: str, sha256: str, mailbox: MailboxOf) -> FileResponse:
    """Download a file of the current task."""
    path = mailbox.file(task, sha256)
    if path is None:
        raise NotFound("file", sha256, [])
    return FileResponse(path, media_type="application/octet-stream")


@router.post("/{device}/tasks/{task}", status_code=204)
def answer_task(task: str, answer: MeasuringAnswer, mailbox: MailboxOf, service: ServiceOf) -> None:
    """Send the latency samples of every file, or the reason why there are none.

    404: the job no longer waits for them.
    """
    service.agents.reply(mailbox, task, answer)
