"""Validates and describes a model, data set or job, in a child process.

The child runs `main` of service.pipeline.validate_job, or of the fake engine. It is a separate process because it needs
torch. It reads one JSON object, writes one JSON object, and is killed when it takes too long. It is a fork of a process
that has imported torch already (service/jobs/warm_process.py).
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any, Final

from models.errors import DamagedFile, error_from_json
from service.core.data_folder import DataFolder
from service.core.errors import ValidationBroken, ValidationSlow
from service.core.hidden_paths import HiddenPaths
from service.core.limits import Limits
from service.core.processes import child_environment, signal_group
from service.jobs.turns import Turns
from service.library.room import Room

log = logging.getLogger("vitfit.service")
GOODBYE_S: Final = 2.0
"""How long the validator waits for the end of a check that it has killed, in seconds."""
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1"}
"""More threads make a check slower: it is short, and its threads would wait for those of the jobs."""
LONGEST_IMPORT_S: Final = 300.0
"""After this time, a warm process that does not answer is replaced. Before, it may still import its module."""


class Validator:
    """Runs a few validation processes at a time, because each one holds a model in memory. Each person has a queue."""

    def __init__(
        self,
        module: str,
        turns: Turns | None = None,
        limits: Limits | None = None,
        environment: dict[str, str] | None = None,
        *,
        hidden: HiddenPaths | None = None,
        space: tuple[DataFolder, Room] | None = None,
    ) -> None:
        """Prepare the validator, and start no process yet.

        module: its `main` reads stdin and writes stdout. limits: those of each process. hidden: the paths that no
        answer names. space: where a check writes its temporary files, and how much; None: as this process does.
        """
        self._limits, self._hidden, self._space = limits or Limits(), hidden, space
        self._warm = _Warm(module, self._limits, environment)
        self._turns = turns or Turns(parallel=2, each=2)

    def start(self) -> None:
        """Start to import the module, so that the first validation does not have to wait for it."""
        self._warm.start()

    def close(self) -> None:
        """End all processes of this validator."""
        self._warm.close()

    async def describe(self, document: dict[str, Any], timeout_s: float, person: str = "") -> dict[str, Any]:
        """Validate what `document` names, and return its description.

        timeout_s: upper limit in seconds. The wait for a turn does not count. person: who asks.

        Raises: the VitfitError with which the validation rejected the document; LimitReached; TooMany; ValidationSlow;
        ValidationBroken; StorageFull when the files that the check unpacks leave no space.
        """
        async with self._turns.turn(person), self._within_space(document) as question:
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await self._ask(question)
            except TimeoutError:
                raise _slow(document, timeout_s) from None
        if which := answer.get("limit"):
            raise self._limits.reached(which)
        if not answer["ok"]:
            raise error_from_json(self._hidden.value(answer["error"]) if self._hidden else answer["error"])
        description: dict[str, Any] = answer["description"]
        return description

    @contextlib.asynccontextmanager
    async def _within_space(self, document: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Give a check a folder for temporary files, and count what it writes. The folder is deleted at the end."""
        if self._space is None:
            yield document
            return
        folder, room = self._space
        with folder.uploading() as scratch:
            uploaded = [] if "job" in document else [Path(document.get("dataset") or document["model"])]
            async with room.watching([scratch, *uploaded]):
                left = await asyncio.to_thread(room.left)  # it may weigh the data folder
                yield {**document, "scratch": str(scratch), "room": left}

    async def _ask(self, document: dict[str, Any]) -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(_memory()) for _ in range(3)]
            streams[0].write(json.dumps(document).encode())
            streams[0].seek(0)
            ours = stack.enter_context(self._warm.begin(streams))
            status = await self._status(ours)
            output, complaints = (_content(stream) for stream in streams[1:])
        return parsed(output, complaints if status is not None else self._warm.complaints(), status, self._limits)

    async def _status(self, ours: socket.socket) -> int | None:
        """Return the exit status of a check; None if the warm process has died.

        If the call is canceled, it kills the check and waits for its end, because the files of the check are deleted
        next.
        """
        loop = asyncio.get_running_loop()
        try:
            said = await loop.sock_recv(ours, 64)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_WR)
            try:
                async with asyncio.timeout(GOODBYE_S):
                    await loop.sock_recv(ours, 64)
            except TimeoutError:
                self._warm.doubt()
            raise
        return int(said) if said else None


class _Warm:
    """The warm process, which is started again when it is gone."""

    def __init__(self, module: str, limits: Limits, environment: dict[str, str] | None) -> None:
        self._module, self._limits, self._environment = module, json.dumps(limits.to_json()), environment
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._complaints: IO[bytes] | None = None
        self._started = 0.0

    def start(self) -> socket.socket:
        """Start the process if it does not run. Return the socket for its requests."""
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self.close()
        self._complaints, self._started = _memory(), time.monotonic()
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.jobs.warm_process", self._module, str(theirs.fileno()), self._limits],
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
                env=child_environment(ONE_THREAD | (self._environment or {})),
            )
        return self._control

    def begin(self, streams: list[IO[bytes]]) -> socket.socket:
        """Begin a check. Return the socket on which its exit status arrives. Closing this socket kills the check."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            descriptors = [*(stream.fileno() for stream in streams), theirs.fileno()]
            try:
                socket.send_fds(self.start(), [b"."], descriptors)
            except OSError:  # the process has died a moment ago, or does not read
                self.close()
                socket.send_fds(self.start(), [b"."], descriptors)
        return ours

    def doubt(self) -> None:
        """End the process if it should have imported its module long ago. It does not answer."""
        if time.monotonic() - self._started > LONGEST_IMPORT_S:
            self.close()

    def complaints(self) -> bytes:
        """Return what the process has written, which explains why it has ended."""
        return b"" if self._complaints is None else _content(self._complaints)

    def close(self) -> None:
        """End the process and all checks."""
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for held in (self._control, self._complaints):
            if held is not None:
                held.close()
        self._process = self._control = self._complaints = None


def _memory() -> IO[bytes]:
    """Return a file that exists only in memory, so that a full disk does not matter."""
    return os.fdopen(os.memfd_create("vitfit-validation"), "w+b", buffering=0)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


SLOW: Final = {
    "job": ("job", "VITFIT_VALIDATE_TIMEOUT_S"),
    "model": ("model", "VITFIT_REGISTER_TIMEOUT_S"),
    "dataset": ("data set", "VITFIT_REGISTER_TIMEOUT_S"),
}
"""What a document asks about, by the field that says so, and the setting that limits the time for it."""


def _slow(document: dict[str, Any], timeout_s: float) -> ValidationSlow:
    noun, setting = next(found for name, found in SLOW.items() if name in document)
    return ValidationSlow(
        f"vitfit did not check the {noun} within {timeout_s:g} s, so it may be wrong. Try again when the server is "
        f"less busy, or give it more time: the operator can raise {setting}.",
        seconds=timeout_s,
    )


def parsed(output: bytes, complaints: bytes, status: int | None, limits: Limits) -> dict[str, Any]:
    """Return the answer of a check that has ended.

    Raises: LimitReached; DamagedFile if a crash ended the check; ValidationBroken if vitfit itself is the reason.
    """
    said = complaints.decode(errors="replace")
    answer = _answer(output) if status == 0 else None
    if answer is not None:
        if answer.get("unexpected"):
            log.error("a check refused an upload because of an unexpected error:\n%s", said[-4000:])
        return answer
    log.error("the validation ended with exit status %s:\n%s", status, said[-4000:])
    if status is not None and (reason := limits.ended_by(status, said)):
        raise reason
    if status is not None and status < 0:
        raise DamagedFile(
            f"The process that read it has crashed ({signal.Signals(-status).name}). The file may be damaged, or made"
            " to harm. Save it again with the newest version of the program that made it."
        )
    raise ValidationBroken(
        f"The validation process failed (exit status {status}). The log of the server has the details."
    )


def _answer(output: bytes) -> dict[str, Any] | None:
    """Return the answer of a check, or None if it is no complete answer."""
    try:
        answer: dict[str, Any] = json.loads(output)
        is_whole = "limit" in answer or ("description" if answer["ok"] else "error") in answer
    except (ValueError, KeyError, TypeError):
        return None
    return answer if is_whole else None
