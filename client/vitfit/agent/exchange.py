"""The requests of an agent. Answers are read up to a size, redirects are refused, and JSON is an object."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from vitfit.connection import Connection
from vitfit.errors import Problem, VitfitError, error_from_response

MOST_JSON_BYTES = 2**20
MOST_WORDS = 500
"""Upper limit on the characters of a server's message that the agent repeats."""
NOT_READABLE, BUSY = "not-a-vitfit-server", "busy"
"""Codes of errors: the answer is not that of a vitfit server, or the server asks for a later repetition."""
LATER = (408, 425, 429)
"""Statuses below 500 that ask for a later repetition."""


class Exchange:
    """Sends requests to one server. Every error is a `VitfitError`.

    Its `status` is set only if a vitfit server has refused the request, so that a repetition is of no use.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.server = connection.server

    def json(self, method: str, path: str, **extra: Any) -> dict[str, Any] | None:
        """Send a request, and return the JSON object of the answer; None if the answer is 204."""
        with self._answer(method, path, **extra) as response:
            if response.status_code == 204:
                return None
            body = self._body(response, MOST_JSON_BYTES)
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise self._not_readable(f"The answer to {method} {path} is not JSON.") from None
        if not isinstance(found, dict):
            raise self._not_readable(f"The answer to {method} {path} is not a JSON object.")
        return found

    def download(self, path: str, target: Path, most_bytes: int, *, headers: dict[str, str]) -> str:
        """Write the body of an answer to `target`, and return its SHA-256.

        Raises: VitfitError when the body is longer than `most_bytes`; OSError when the file cannot be written.
        """
        digest = hashlib.sha256()
        with self._answer("GET", path, headers=headers) as response, target.open("wb") as file:
            for chunk in self._chunks(response, most_bytes):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    @contextmanager
    def _answer(self, method: str, path: str, **extra: Any) -> Iterator[httpx.Response]:
        headers = {**extra.pop("headers", {}), "Accept-Encoding": "identity"}
        try:
            with self._connection.stream(path, headers, method=method, redirects=False, **extra) as response:
                self._require_success(method, path, response)
                yield response
        except httpx.HTTPError as error:
            raise self._connection.unreachable(error) from error

    def _require_success(self, method: str, path: str, response: httpx.Response) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        if status < 400:
            raise self._not_readable(
                f"The answer to {method} {path} was {status}, which leads to another address. An agent follows none."
            )
        body = self._body(response, MOST_JSON_BYTES)
        known = error_from_response(httpx.Response(status, content=body, request=response.request))
        if not known.type.startswith("/problems/"):
            raise self._not_readable(f"The answer to {method} {path} was {status}, without an explanation.")
        detail = known.detail[:MOST_WORDS]
        if status >= 500 or status in LATER:
            raise VitfitError.local(BUSY, detail)
        raise VitfitError(Problem(known.type, known.title, status, detail))

    def _body(self, response: httpx.Response, most_bytes: int) -> bytes:
        return b"".join(self._chunks(response, most_bytes))

    def _chunks(self, response: httpx.Response, most_bytes: int) -> Iterator[bytes]:
        """Return the body as it was sent, because a compressed one could become large. Raises: VitfitError."""
        received = 0
        for chunk in response.iter_raw():
            received += len(chunk)
            if received > most_bytes:
                raise self._not_readable(f"An answer is longer than the {most_bytes:,} bytes that are allowed.")
            yield chunk

    def _not_readable(self, what: str) -> VitfitError:
        return VitfitError.local(
            NOT_READABLE,
            f"{what} Check that {self.server} is the address of a vitfit server, without a page before it.",
        )
