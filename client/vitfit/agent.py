"""`vitfit agent`: measures ONNX files on this device for the jobs of a server on another machine.

The agent asks for tasks by long polling, fetches files by their SHA-256 and checks them, measures them in a separate
process (vitfit/measuring.py), and sends the raw samples back. It executes nothing but ONNX files. Server and agent can
both be restarted at any time, because the server offers a task until it is answered.
"""

import hashlib
import importlib.metadata
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitfit.child import ChildFailed, ask
from vitfit.connection import Connection, pause_s
from vitfit.errors import VitfitError
from vitfit.machine import cpu_name

PROTOCOL = 1
WAIT_S = 25.0
BEAT_S = 20.0
"""Seconds between two signals that the agent is alive, sent while it measures."""
CACHE_BYTES = 2 * 2**30
MEASURING = (sys.executable, "-m", "vitfit.measuring")
Said = Callable[[str], None]
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
    ) -> None:
        """Create an agent; `run` starts it.

        name: the device is called agent-NAME.
        cache: folder for fetched files.
        measuring: command of the process that measures; it must follow the protocol of `vitfit.measuring`.
        say: receives messages for the user.
        """
        self._connection, self._name, self._cache, self._measuring = connection, name, cache, measuring
        self._say, self._device, self._session = say, "", ""
        cache.mkdir(parents=True, exist_ok=True)

    def run(self, tasks: int | None = None) -> None:
        """Register the device and answer tasks, either without end or until `tasks` tasks are answered.

        Raises: VitfitError if the server rejects this agent because of its token, version or name, or because another
            agent has registered under its name.
        """
        self._patiently(self._register)
        self._say(f"registered as {self._device} at {self._connection.server}")
        done = 0
        while tasks is None or done < tasks:
            task = self._patiently(self._next)
            if task is not None:
                answer = self._answer(task)
                self._patiently(lambda task=task, answer=answer: self._reply(task, answer))  # type: ignore[misc]
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
        found = self._connection.json("POST", "/v1/agents", json=body)
        self._device, self._session = str(found["device"]), str(found["session"])

    def _next(self, wait_s: float = WAIT_S) -> dict[str, Any] | None:
        response = self._connection.request(
            "GET", f"/v1/agents/{self._device}/task", params={"wait_s": wait_s}, headers=self._headers
        )
        return None if response.status_code == 204 else dict(response.json())

    def _answer(self, task: dict[str, Any]) -> dict[str, Any]:
        try:
            files = [self._patiently(lambda e=entry: self._file(task, e)) for entry in task["files"]]  # type: ignore[misc]
            images = task["images"] and self._patiently(lambda: self._file(task, task["images"]))
        except VitfitError as error:
            return {"refused": error.detail}
        request = {name: task[name] for name in ("threads", "batch", "provider", "seconds", "rounds", "seed")}
        request |= {"files": [str(file) for file in files], "images": str(images) if images else None}
        self._say(f"measuring {len(files)} files, {task['threads']} threads, batch {task['batch']}")
        with self._alive():
            return measured(self._measuring, request)

    def _reply(self, task: dict[str, Any], answer: dict[str, Any]) -> None:
        try:
            path = f"/v1/agents/{self._device}/tasks/{task['id']}"
            self._connection.request("POST", path, json=answer, headers=self._headers)
        except VitfitError as error:
            if error.status not in (404, 422):
                raise
            # Nothing more to do: the job no longer waits, or the server has told the job the reason.
            self._say(f"the server did not accept the answer: {error.detail}")

    def _file(self, task: dict[str, Any], entry: dict[str, Any]) -> Path:
        """Return the path of a file in the cache, and fetch the file if it is missing.

        Raises: VitfitError if the content does not match the SHA-256 that the server gave.
        """
        target = self._cache / str(entry["sha256"])
        if not target.exists():
            path = f"/v1/agents/{self._device}/tasks/{task['id']}/files/{entry['sha256']}"
            content = self._connection.request("GET", path, headers=self._headers).content
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise VitfitError.local(
                    "damaged-file",
                    f"The downloaded file {entry['sha256'][:12]} is damaged: "
                    "it has another SHA-256 than the server gave.",
                )
            beside = target.with_suffix(f".{os.getpid()}.part")
            beside.write_bytes(content)
            os.replace(beside, target)
            self._make_room(target)
        os.utime(target)
        return target

    def _make_room(self, newest: Path) -> None:
        files = sorted(
            (path for path in self._cache.iterdir() if path != newest), key=lambda path: path.stat().st_mtime
        )
        whole = sum(path.stat().st_size for path in [*files, newest])
        for path in files:
            if whole > CACHE_BYTES:
                whole -= path.stat().st_size
                path.unlink()

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

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Repeat `call` until the server answers, because it may be restarting.

        Raises: VitfitError if the server rejects the request.
        """
        attempt = 0
        while True:
            try:
                return call()
            except VitfitError as error:
                if error.status is not None and error.status < 500:
                    raise
                if error.type.endswith(("damaged-file", "invalid-address")):
                    raise
                if attempt == 0:
                    self._say(error.detail)
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
        return {"refused": f"the measuring process failed: {error}"[:1000]}


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
