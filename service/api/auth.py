"""FastAPI dependencies that authenticate the caller.

A caller is identified by an access token. If the operator allows anonymous access, a caller on this machine
needs a token only for the scope agent.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Header
from starlette.concurrency import run_in_threadpool

from service.api.access_tokens import Scope
from service.api.context import ServiceOf
from service.api.identity import ANYBODY, Caller


def require(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return a dependency that gives a route its caller, who must have `scope`.

    Raises: Unauthorized, Forbidden; both in the dependency.
    """

    async def caller(
        service: ServiceOf, authorization: Annotated[str | None, Header(include_in_schema=False)] = None
    ) -> Caller:
        if authorization is None and service.settings.anonymous and scope != "agent":
            return ANYBODY
        token = await run_in_threadpool(service.tokens.require, authorization, scope)
        return Caller(token.name, token.allows)

    return caller


Reader = Annotated[Caller, Depends(require("read"))]
Submitter = Annotated[Caller, Depends(require("submit"))]
Admin = Annotated[Caller, Depends(require("admin"))]
