"""Reject request bodies that are too large before they are read into memory."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import TooLarge
from service.core.errors import MalformedUpload
from service.middleware.problems import answer

LIMIT_BYTES: Final = 2**20
STREAMED: Final = ("/v1/models", "/v1/datasets")  # multipart bodies are streamed to disk, with a separate limit


class BodyLimit:
    """ASGI middleware that limits request bodies to `LIMIT_BYTES` and requires a Content-Length.

    A repeated header is refused, because the parser of the body may read another one of them than this check.
    Multipart bodies of the addresses in `STREAMED` are exempt, because they are streamed to disk.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = _objection(scope) if scope["type"] == "http" else None
        app = answer(error) if error else self._app
        await app(scope, receive, send)


def _objection(scope: Scope) -> TooLarge | MalformedUpload | None:
    headers = {name.lower(): value for name, value in scope["headers"]}
    for name in (b"content-type", b"content-length", b"transfer-encoding"):
        if sum(stated.lower() == name for stated, _ in scope["headers"]) > 1:
            return MalformedUpload(
                f"The request has more than one header {name.decode().title()}. Send one header with one value."
            )
    if headers.get(b"content-type", b"").startswith(b"multipart/") and scope["path"] in STREAMED:
        return None
    if b"transfer-encoding" in headers:
        return MalformedUpload(
            "This address does not accept a body with a Transfer-Encoding. Send the body with a Content-Length."
        )
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > LIMIT_BYTES:
        return TooLarge(
            f"The body has {int(length)} bytes, but at most {LIMIT_BYTES} bytes are allowed. Send a smaller body.",
            limit_bytes=LIMIT_BYTES,
        )
    return None
