"""Serve the artifacts (finished files) of a job over HTTP, with digests, ranges and validators.

ETag and Repr-Digest (RFC 9530) hold the SHA-256 of the whole file, so a client can check a resumed download at its end.
"""

import base64
import mimetypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from service.core.data_folder import artifacts_key
from service.core.errors import MalformedUpload, NotFound, RangeUnsatisfiable
from service.middleware.problems import answer
from service.storage.base import Storage, StoredFile

MEDIA_TYPES: Final = {
    ".onnx": "application/vnd.onnx",
    ".safetensors": "application/octet-stream",
    ".pt2": "application/octet-stream",
    ".json": "application/json",
    ".html": "text/html",
    ".md": "text/markdown",
}


@dataclass(frozen=True)
class Artifact(StoredFile):
    """A finished file of a job."""

    @property
    def media_type(self) -> str:
        known = MEDIA_TYPES.get(Path(self.name).suffix)
        return known or mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'

    @property
    def headers(self) -> dict[str, str]:
        digest = base64.b64encode(bytes.fromhex(self.sha256)).decode()
        return {
            "ETag": self.etag,
            "Repr-Digest": f"sha-256=:{digest}:",
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
        }


def artifacts_of(storage: Storage, job_id: str) -> list[Artifact]:
    """Return all artifacts of a job, ordered by name."""
    return [Artifact(file.name, file.size_bytes, file.sha256) for file in storage.files(artifacts_key(job_id))]


def artifact_named(storage: Storage, job_id: str, name: str) -> Artifact:
    """Return the artifact with this name. Raises: NotFound.

    The name comes from a user. It is only compared with the existing names and never becomes part of a path.
    """
    found = {artifact.name: artifact for artifact in artifacts_of(storage, job_id)}
    if name not in found:
        raise NotFound("artifact", name, list(found))
    return found[name]


def is_known(etag: str, request: Request) -> bool:
    """Return whether the If-None-Match header contains this ETag, so that the client already has this version."""
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag in known or known == ["*"]


class ArtifactResponse(FileResponse):
    """A response with a file and its digests.

    A rejected range is answered with problem+json, like every other error.
    """

    def __init__(self, artifact: Artifact, path: Path) -> None:
        shown = "inline" if artifact.media_type == "text/html" else "attachment"
        super().__init__(
            path,
            headers=artifact.headers,
            media_type=artifact.media_type,
            filename=artifact.name,
            stat_result=os.stat(path),
            content_disposition_type=shown,
        )
        self._artifact = artifact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: list[Message] = []

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                refused.append(message)
            if not refused:
                await send(message)

        await super().__call__(scope, receive, watch)
        if refused:
            await self._problem(refused[0])(scope, receive, send)

    def _problem(self, start: Message) -> JSONResponse:
        size = self._artifact.size_bytes
        if start["status"] == 416:
            error = RangeUnsatisfiable(
                f"The file has {size} bytes, but the range begins after its end. Ask for bytes inside the file.",
                bytes=size,
            )
            content_range = MutableHeaders(raw=start["headers"]).get("content-range", f"bytes */{size}")
            return answer(error, {"Content-Range": content_range})
        return answer(MalformedUpload("The Range header is malformed. Write it in the form bytes=first-last."))
