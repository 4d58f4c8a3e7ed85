"""Passes files from a job that wants them measured to the agent of a device: one folder per device.

A task is a folder with `request.json` and the files, which are named by their SHA-256. Tasks and answers are written
under another name and then renamed, so nobody sees an incomplete one. The job that waits for a task keeps it alive by
touching it; a task for which nobody waits is deleted. Agents do not claim tasks: a device has one agent at a time,
which is offered the oldest task until this is answered. So either side may restart at any moment. Standard library
only, because both the web process and jobs use it.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.atomic_write import write_whole

REQUEST, ANSWER = "request.json", "answer.json"
ABANDONED_S = 60.0
"""Seconds after which a task that nobody has touched counts as abandoned: its job has ended."""
SEEN, SESSION = "seen", "session"


@dataclass(frozen=True)
class Task:
    id: str
    request: dict[str, Any]


class Mailbox:
    """The mailbox of one device. `folder` is created when the agent of the device registers."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._tasks = folder, folder / "tasks"

    # ---- for jobs

    def post(self, request: dict[str, Any], files: Sequence[Path], images: Path | None) -> str:
        """Add a task and return its id. request: as `vitfit.measuring` takes it, without the files."""
        number = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        beside = self._folder / f".{number}.part"
        beside.mkdir(parents=True)
        listed = [_placed(file, beside) for file in files]
        document = {**request, "files": listed, "images": None if images is None else _placed(images, beside)}
        (beside / REQUEST).write_text(json.dumps(document))
        self._tasks.mkdir(exist_ok=True)
        beside.rename(self._tasks / number)
        return number

    def answer(self, task: str) -> dict[str, Any] | None:
        """The agent's answer; None: there is none yet. Each call keeps the task alive.

        Raises: FileNotFoundError when the task was deleted.
        """
        path = self._tasks / task
        os.utime(path / REQUEST)
        found: dict[str, Any] | None = None
        if (path / ANSWER).exists():
            found = json.loads((path / ANSWER).read_text())
        return found

    def withdraw(self, task: str) -> None:
        shutil.rmtree(self._tasks / task, ignore_errors=True)

    def heard_at(self) -> float | None:
        """Time of the agent's last request, by the file system's clock. Compare it only with values of that clock."""
        try:
            return (self._folder / SEEN).stat().st_mtime
        except FileNotFoundError:
            return None

    def silent_s(self) -> float:
        """Seconds since the agent's last request, for people to read. Wrong for a moment after the clock was set."""
        heard_at = self.heard_at()
        return float("inf") if heard_at is None else max(0.0, time.time() - heard_at)

    # ---- for the agent, through the server

    def open_session(self) -> str:
        """Open a session for an agent that registers, and close the one before it. Return the session."""
        self._tasks.mkdir(parents=True, exist_ok=True)
        session = secrets.token_hex(16)
        write_whole(self._folder / SESSION, session)
        self.heard()
        return session

    def is_open(self, session: str) -> bool:
        try:
            return secrets.compare_digest((self._folder / SESSION).read_bytes(), session.encode())
        except FileNotFoundError:
            return False

    def heard(self) -> None:
        (self._folder / SEEN).touch()

    def oldest(self) -> Task | None:
        """The oldest task that has no answer and for which a job still waits. Deletes abandoned tasks on the way."""
        for path in sorted(self._tasks.glob("*")):
            request = path / REQUEST
            try:
                if time.time() - request.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)
                elif not (path / ANSWER).exists():
                    return Task(path.name, json.loads(request.read_text()))
            except FileNotFoundError:  # withdrawn meanwhile
                continue
        return None

    def find(self, task: str) -> Task | None:
        found = self.oldest()
        return found if found is not None and found.id == task else None

    def file(self, task: str, sha256: str) -> Path | None:
        """Path of a file that the task names. None if it names no such file, or is not the task that is offered now."""
        found = self.find(task)
        if found is None:
            return None
        entries = [*found.request["files"], *filter(None, [found.request["images"]])]
        path = self._tasks / task / sha256
        return path if any(entry["sha256"] == sha256 for entry in entries) and path.is_file() else None

    def reply(self, task: str, answer: dict[str, Any]) -> None:
        write_whole(self._tasks / task / ANSWER, json.dumps(answer))

    def delete(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _placed(file: Path, folder: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    target = folder / digest
    if not target.exists():
        try:
            os.link(file, target)
        except OSError:  # links do not cross file systems
            shutil.copyfile(file, target)
    return {"sha256": digest, "bytes": file.stat().st_size}
