"""Give every request an id.

The id is the client's own if it matches `SANE`, otherwise a new random one. It is returned in the response header and
written in every log line of the request.
"""

import re
import secrets
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core import logs

HEADER: Final = "X-Request-ID"
SANE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """ASGI middleware that sets the request id. It must be the outermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(HEADER, "")
        given = sent if SANE.fullmatch(sent) else f"req_{secrets.token_hex(8)}"
        # The id is never unbound, because the response to an unexpected error is created outside of this middleware.
        logs.bind(request_id=given)

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = given
            await send(message)

        await self._app(scope, receive, with_id)
