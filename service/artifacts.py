"""The finished files of a job over HTTP: digests, ranges, validators.

ETag and Repr-Digest (RFC 9530) are the SHA-256 of the whole file, so a download that resumes can be checked at its end.
"""

import base64
import functools
import hashlib
import mimetypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from service.errors import MalformedUpload, NotFound, RangeUnsatisfiable
from service.paths import JobFolder
from service.problems import answer

MEDIA_TYPES: Final = {
    ".onnx": "application/vnd.onnx",
    ".safetensors": "application/octet-stream",
    ".pt2": "application/octet-stream",
    ".json": "application/json",
    ".html": "text/html",
    ".md": "text/markdown",
}


@dataclass(frozen=True)
class Artifact:
    """A finished file."""

    path: Path
    size_bytes: int
    sha256: str  # hexadecimal

    @property
    def media_type(self) -> str:
        known = MEDIA_TYPES.get(self.path.suffix)
        return known or mimetypes.guess_type(self.path.name)[0] or "application/octet-stream"

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


def artifacts_of(folder: JobFolder) -> list[Artifact]:
    """All finished files by name."""
    if not folder.artifacts.is_dir():
        return []
    return [_describe(path) for path in sorted(folder.artifacts.iterdir()) if path.is_file()]


def artifact_named(folder: JobFolder, name: str) -> Artifact:
    """Users' text is compared with the names that are there and never becomes a path. Raises: NotFound."""
    paths = {path.name: path for path in folder.artifacts.iterdir()} if folder.artifacts.is_dir() else {}
    if name not in paths or not paths[name].is_file():
        raise NotFound("artefact", name, sorted(paths))
    return _describe(paths[name])


def _describe(path: Path) -> Artifact:
    stat = path.stat()
    return Artifact(path, stat.st_size, _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, inode: int, size: int, changed_ns: int) -> str:
    """The digest, once for each version of a file (the other arguments are only the cache's key)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ArtifactResponse(FileResponse):
    """A file with its digests; refused ranges are problem+json as every other error."""

    def __init__(self, artifact: Artifact) -> None:
        shown = "inline" if artifact.media_type == "text/html" else "attachment"
        super().__init__(
            artifact.path,
            headers=artifact.headers,
            media_type=artifact.media_type,
            filename=artifact.path.name,
            stat_result=os.stat(artifact.path),
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
            error = RangeUnsatisfiable(f"The file has {size} bytes; the range begins after its end.", bytes=size)
            content_range = MutableHeaders(raw=start["headers"]).get("content-range", f"bytes */{size}")
            return answer(error, {"Content-Range": content_range})
        return answer(MalformedUpload("The Range header is not of the form bytes=first-last."))
