"""Reads multipart uploads as a stream.

The file part is written to disk in pieces and is never held in memory as a whole.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from models.errors import TooLarge
from service.core.errors import MalformedUpload, StorageFull
from service.library.room import Room

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD_LIMIT_BYTES = 256 * 1024
PIECE_BYTES = 2**20
DRAIN_BYTES = 64 * 2**20
DRAIN_S = 5.0


@dataclass
class Upload:
    """The content of an upload: its text fields, and the name that the user gave the file, if there is one."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def receive(
    request: Request, file_part: str, text_parts: Collection[str], path: Path, *, limit: int, room: Room
) -> Upload:
    """Write the file part of a multipart body to `path`, and return the other parts.

    Args:
        request: the request whose body is read.
        file_part: the name of the part that holds the file.
        text_parts: the names of the text parts that are allowed.
        path: where the file is written; it must not exist yet.
        limit: upper limit in bytes for the whole body.
        room: the space that is left. Every piece is counted before it is written, whatever the headers say.

    Raises: TooLarge; StorageFull; MalformedUpload for a body that is not multipart, has unknown parts or ends early.
    """
    form = _Form(file_part, text_parts, path)
    try:
        parser = MultipartParser(_boundary(request), form.callbacks())
        await _feed(request, parser, form, limit=limit, room=room)
    except FormParserError as error:
        raise MalformedUpload(
            f"The Content-Type of the request is multipart/form-data, but its body has another format: {error}. "
            "Send the body in this format."
        ) from error
    except ClientDisconnect:
        raise MalformedUpload("The connection ended before the upload was complete. Send it again.") from None
    finally:
        form.close()
    if not form.ended:
        raise MalformedUpload("The upload is incomplete: its closing boundary is missing. Send it again.")
    return form.upload


def _boundary(request: Request) -> bytes:
    _, options = parse_options_header(request.headers["content-type"])
    if not options.get(b"boundary"):
        raise MalformedUpload("The Content-Type multipart/form-data has no boundary. Add the parameter boundary.")
    return options[b"boundary"]


async def _feed(request: Request, parser: MultipartParser, form: "_Form", *, limit: int, room: Room) -> None:
    announced = request.headers.get("content-length", "")
    received = 0
    if announced.isdigit() and int(announced) > limit:
        await _refuse(request, limit)
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            await _refuse(request, limit)
        if chunk:
            parser.write(chunk)
        if len(form.pending) >= PIECE_BYTES:
            try:
                await run_in_threadpool(form.flush, room)
            except StorageFull:
                await _drain(request)
                raise
    parser.finalize()
    await run_in_threadpool(form.flush, room)


async def _drain(request: Request) -> None:
    """Read the body for a few more seconds.

    A client that is still sending might not see the answer if the server closed the connection at once.
    """
    until, left = time.monotonic() + DRAIN_S, DRAIN_BYTES
    if "expect" not in request.headers:  # with "Expect: 100-continue" the client has not sent the body yet
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0 or time.monotonic() > until:
                break


async def _refuse(request: Request, limit: int) -> None:
    """Raise TooLarge, after reading the rest of the body."""
    await _drain(request)
    raise TooLarge(
        f"The upload is larger than {limit} bytes, which is the limit of this server. Send a smaller file.",
        limit_bytes=limit,
    )


class _Form:
    """The callbacks of the multipart parser. They collect the text parts and write the file part."""

    def __init__(self, file_part: str, text_parts: Collection[str], path: Path) -> None:
        self.upload = Upload()
        self.pending = bytearray()
        self.ended = False
        self._file_part, self._text_parts, self._path = file_part, text_parts, path
        self._file: BinaryIO | None = None
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._part = ""
        self._text = bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def flush(self, room: Room) -> None:
        """Write the buffered bytes to the file. Raises: StorageFull."""
        if self.pending and self._file:
            room.take(len(self.pending))
            self._file.write(self.pending)
        self.pending.clear()

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _on_part_begin(self) -> None:
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._text.clear()

    def _on_header_end(self) -> None:
        name, value = (bytes(half) for half in self._header)
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = options.get(b"name", b"").decode(errors="replace")
        if self._part == self._file_part and self._file is None:
            self.upload.filename = _base_name(options.get(b"filename", b"").decode(errors="replace"))
            self._file = self._path.open("xb")
        elif self._part not in self._text_parts or self._part in self.upload.fields:
            expected = ", ".join([self._file_part, *self._text_parts])
            raise MalformedUpload(
                f"The part {self._part[:100]!r} is unknown or occurs twice. Allowed parts, each once: {expected}."
            )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == self._file_part:
            self.pending.extend(memoryview(data)[start:end])
            return
        self._text.extend(data[start:end])
        if len(self._text) > FIELD_LIMIT_BYTES:
            raise TooLarge(
                f"The part {self._part!r} is larger than {FIELD_LIMIT_BYTES} bytes, which is the limit for text. "
                "Send a shorter text.",
                limit_bytes=FIELD_LIMIT_BYTES,
            )

    def _on_part_end(self) -> None:
        if self._part != self._file_part:
            self.upload.fields[self._part] = self._text.decode(errors="replace")

    def _on_end(self) -> None:
        self.ended = True


def _base_name(name: str) -> str:
    """Return the last component of a file name, which may be a Windows or POSIX path.

    The result is only shown to users; it is never used as a path.
    """
    return PurePosixPath(name.replace("\\", "/")).name[:200] or "unnamed"
