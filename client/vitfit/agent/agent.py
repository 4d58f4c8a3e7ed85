"""The agent of one device: registers it, asks for tasks, and answers them."""

import importlib.metadata
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vitfit.agent.exchange import BUSY, NOT_READABLE, Exchange
from vitfit.agent.file_cache import MOST_FILE_BYTES, FileCache
from vitfit.agent.task import ODD_TASK, SESSION, OddTask, Task, TaskFile, read_task, task_id
from vitfit.agent.without_paths import without_paths
from vitfit.child import ChildFailed, ask
from vitfit.connection import Connection, pause_s
from vitfit.errors import VitfitError
from vitfit.machine import cpu_name

PROTOCOL = 1
WAIT_S = 25.0
BEAT_S = 20.0
"""Seconds between two signals that the agent is alive, sent while it measures."""
MOST_REASON = 1000
"""Upper limit on the characters of a reason. The server takes no longer one."""
MEASURING = (sys.executable, "-m", "vitfit.measuring")
AWAY = ("unreachable", BUSY)
PASSING = (*AWAY, NOT_READABLE, ODD_TASK)
"""Codes of errors that may pass: of the network, of a busy server, or of what stands in the place of the server."""
Said = Callable[[str], None]
Result = TypeVar("Result")
log = logging.getLogger("vitfit.agent")


class Agent:
    def __init__(
        self,
        connection: Connection,
        name: str,
        cache: Path,
        measuring: Sequence[str] = MEASURING,
        *,
        say: Said = log.info,
        most_file_bytes: int = MOST_FILE_BYTES,
    ) -> None:
        """Create an agent; `run` starts it.

        name: the device is called agent-NAME.
        cache: folder for fetched files.
        measuring: command of the process that measures; it must follow the protocol of `vitfit.measuring`.
        say: receives messages for the user.
        most_file_bytes: upper limit in bytes for one file.
        """
        self._exchange, self._device = Exchange(connection), f"agent-{name}"
        self._name, self._cache, self._measuring = name, FileCache(cache, most_file_bytes), measuring
        self._say, self._session = say, ""

    def run(self, tasks: int | None = None) -> None:
        """Register the device and answer tasks, either without end or until `tasks` tasks are answered.

        After a task without samples, the agent pauses, longer after each such task, because a server may send odd
        tasks without end.

        Raises: VitfitError if the server rejects this agent because of its token, version or name, or because another
            agent has registered under its name.
        """
        self._patiently(self._register)
        self._say(f"registered as {self._device} at {self._exchange.server}")
        done = failed = 0
        while tasks is None or done < tasks:
            if failed:
                time.sleep(pause_s(failed - 1))
            found = self._patiently(self._next)
            if found is None:
                continue
            number, answer = task_id(found), self._answer(found)
            self._patiently(lambda number=number, answer=answer: self._reply(number, answer))  # type: ignore[misc]
            failed = failed + 1 if "refused" in answer else 0
            done += 1

    def _register(self) -> None:
        runtime, providers = _runtime()
        body = {
            "name": self._name,
            "protocol": PROTOCOL,
            "version": importlib.metadata.version("vitfit"),
            "machine": cpu_name(),
            "threads": len(os.sched_getaffinity(0)),
            "runtime": runtime,
            "providers": providers,
        }
        found = self._exchange.json("POST", "/v1/agents", json=body) or {}
        session = found.get("session")
        if found.get("device") != self._device or not isinstance(session, str) or not SESSION.fullmatch(session):
            raise VitfitError.local(
                NOT_READABLE,
                f"The answer of {self._exchange.server} to the registration is not that of a vitfit server. "
                "Check the address.",
            )
        self._session = session

    def _next(self, wait_s: float = WAIT_S) -> dict[str, Any] | None:
        """Ask for a task. Raises: VitfitError, also for a task without a usable id."""
        path = f"/v1/agents/{self._device}/task"
        found = self._exchange.json("GET", path, params={"wait_s": wait_s}, headers=self._headers)
        if found is not None:
            task_id(found)
        return found

    def _answer(self, found: dict[str, Any]) -> dict[str, Any]:
        try:
            task = read_task(found)
            files = [self._file(task, file) for file in task.all_files]
            self._cache.make_room({file.sha256 for file in task.all_files})
        except OddTask as odd:
            return self._refusal(f"the agent cannot read the task: {odd}")
        except VitfitError as error:
            return self._refusal(error.detail)
        images = str(files.pop()) if task.images else None
        request = {**task.setting, "files": [str(file) for file in files], "images": images}
        self._say(f"measuring {len(files)} files, {request['threads']} threads, batch {request['batch']}")
        with self._alive():
            answer = measured(self._measuring, request)
        return self._refusal(str(answer["refused"])) if "refused" in answer else answer

    def _refusal(self, reason: str) -> dict[str, Any]:
        """Return the answer that says why there are no samples. The user sees the whole reason."""
        self._say(f"no samples: {reason}")
        return {"refused": without_paths(reason, (self._cache.folder, Path.home(), Path(sys.prefix)))[:MOST_REASON]}

    def _reply(self, number: str, answer: dict[str, Any]) -> None:
        try:
            path = f"/v1/agents/{self._device}/tasks/{number}"
            self._exchange.json("POST", path, json=answer, headers=self._headers)
        except VitfitError as error:
            if error.status not in (404, 422):
                raise
            # Nothing more to do: the job no longer waits, or the server has told the job the reason.
            self._say(f"the server did not accept the answer: {error.detail}")

    def _file(self, task: Task, file: TaskFile) -> Path:
        """Return the path of a file of a task, and fetch the file if it is missing. Raises: VitfitError.

        The agent makes the address itself. A server that cannot be reached is asked again, and any other error is a
        reason for the server.
        """
        address = f"/v1/agents/{self._device}/tasks/{task.id}/files/{file.sha256}"
        return self._patiently(lambda: self._cache.get(self._exchange, address, file, headers=self._headers), AWAY)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT_S):
                try:
                    self._next(0)
                except VitfitError as error:
                    log.info("%s", error.detail)

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _patiently(self, call: Callable[[], Result], passing: Sequence[str] = PASSING) -> Result:
        """Repeat `call` with growing pauses while it fails for a reason that may pass. The user sees each new reason.

        passing: codes of the local errors after which `call` is repeated.

        Raises: VitfitError if the server rejects the request, and for any other local error.
        """
        attempt, said = 0, ""
        while True:
            try:
                return call()
            except VitfitError as error:
                if error.status is not None or error.problem.code not in passing:
                    raise
                if error.detail != said:
                    said = error.detail
                    self._say(said)
            time.sleep(pause_s(attempt))
            attempt += 1

    @property
    def _headers(self) -> dict[str, str]:
        return {"Vitfit-Session": self._session}


def measured(command: Sequence[str], request: dict[str, Any]) -> dict[str, Any]:
    """Run the measuring process and return its answer, {"samples_ms": ...} or {"refused": reason}."""
    try:
        return ask(command, request)
    except ChildFailed as error:
        return {"refused": f"the measuring process failed: {error}"}


def _runtime() -> tuple[str, list[str]]:
    """Return name and version of ONNX Runtime, and its execution providers. Raises: VitfitError if it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise VitfitError.local(
            "no-runtime",
            f"The agent measures with ONNX Runtime, which cannot be loaded ({error}). "
            "Install it, for example in a checkout of vitfit: .venv/bin/pip install onnxruntime numpy.",
        ) from error
    return f"onnxruntime {onnxruntime.__version__}", list(onnxruntime.get_available_providers())
