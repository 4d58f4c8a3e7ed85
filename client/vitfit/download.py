"""Download a file from the server.

The download is resumed after an interruption, and checked against its SHA-256. The file gets its final name only when
it is complete.
"""

import base64
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from vitfit.connection import TRANSIENT_STATUS, Connection, pause_s, retry_after_s
from vitfit.errors import VitfitError, error_from_response
from vitfit.results import Artifact

OnBytes = Callable[[int], None]


def download(connection: Connection, artifact: Artifact, destination: Path, on_bytes: OnBytes | None = None) -> Path:
    """Write `artifact` to `destination` by way of `destination.part`, and return the path.

    `on_bytes` is called with the number of bytes on the disk. A partial file of an earlier attempt is resumed. If the
    result has a wrong digest (because the partial file is from another version), the file is fetched once more from the
    first byte.

    Raises: VitfitError `wrong-digest` if the complete file does not have the digest that the server lists.
    """
    if destination.is_file() and digest_of(destination) == artifact.sha256:
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(destination.name + ".part")
    resumed = part.exists()
    _fetch(connection, artifact, part, on_bytes)
    if resumed and digest_of(part) != artifact.sha256:
        part.unlink()
        _fetch(connection, artifact, part, on_bytes)
    found = digest_of(part)
    if found != artifact.sha256:
        part.unlink()
        raise VitfitError.local(
            "wrong-digest",
            f"The downloaded file {artifact.name} is damaged: its SHA-256 is {found}, but the server lists "
            f"{artifact.sha256}. The file was deleted. Download it again. If this repeats, check the proxies between "
            "client and server.",
            expected=artifact.sha256,
            found=found,
        )
    os.replace(part, destination)
    return destination


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(connection: Connection, artifact: Artifact, part: Path, on_bytes: OnBytes | None) -> None:
    """Download until `part` has the size of the artifact.

    The count of retries starts again after every attempt that received bytes.
    """
    failures = 0
    if not part.exists() or part.stat().st_size > artifact.bytes:
        part.write_bytes(b"")
    while (have := part.stat().st_size) < artifact.bytes:
        pause, fault = pause_s(failures), None
        try:
            pause = _append(connection, artifact, part, have, on_bytes=on_bytes) or pause
        except httpx.TransportError as error:
            fault = error
        if part.stat().st_size > have:
            failures = 0
            continue
        failures += 1
        if failures > connection.retries:
            raise connection.unreachable(fault) if fault else _cut_short(artifact, have)
        time.sleep(pause)


def _append(
    connection: Connection, artifact: Artifact, part: Path, have: int, *, on_bytes: OnBytes | None
) -> float | None:
    """Send one request and append the received bytes to `part`.

    Return the pause in seconds that the server asked for if it was not ready, otherwise None.
    """
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": f'"{artifact.sha256}"'}
    with connection.stream(artifact.href, headers) as response:
        if response.status_code == 416:
            part.write_bytes(b"")
            return None
        if response.status_code in TRANSIENT_STATUS:
            return retry_after_s(response, default=pause_s(0))
        if response.status_code >= 400:
            response.read()
            raise error_from_response(response)
        _compare_digest_header(response, artifact)
        resumes = response.status_code == 206 and _starts_at(response, have)
        with part.open("ab" if resumes else "wb") as file:
            for chunk in response.iter_raw():  # without a larger buffer, whose content an interruption would lose
                file.write(chunk)
                if on_bytes:
                    on_bytes(file.tell())
    return None


def _compare_digest_header(response: httpx.Response, artifact: Artifact) -> None:
    """Check before anything is written that the `Repr-Digest` of the response is the listed digest.

    Raises: VitfitError `wrong-digest` if they differ.
    """
    for member in response.headers.get("Repr-Digest", "").split(","):
        name, _, value = member.strip().partition("=")
        if name != "sha-256" or len(value) < 2:
            continue
        try:
            found = base64.b64decode(value.strip(":")).hex()
        except ValueError:
            found = value
        if found != artifact.sha256:
            raise VitfitError.local(
                "wrong-digest",
                f"The server lists {artifact.name} with SHA-256 {artifact.sha256}, but sends {found}. "
                "The file has changed since it was listed. List the artifacts again, and then download the file.",
                expected=artifact.sha256,
                found=found,
            )


def _starts_at(response: httpx.Response, offset: int) -> bool:
    return bool(response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"))


def _cut_short(artifact: Artifact, have: int) -> VitfitError:
    return VitfitError.local(
        "cut-short",
        f"The download of {artifact.name} has stopped repeatedly, the last time at {have} of {artifact.bytes} bytes. "
        "The received bytes are in the file with the ending .part. Run the same download again to continue.",
        have=have,
        bytes=artifact.bytes,
    )
