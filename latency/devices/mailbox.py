"""Between a job that wants files measured and the agent of a device that measures them: one folder per device.

A task is a folder with `request.json` and the files under their SHA-256; it appears whole (written beside, then renamed) and
its answer does too. Whoever waits keeps a task alive by touching it; what nobody waits for is thrown away. Nothing is
claimed: the device has one agent at a time, which is offered the oldest task until that is answered, so either side may
start again at any moment. Standard library only: the web process and jobs use it.
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
"""A task that nobody has touched for so long is nobody's: its job has ended."""
SEEN, SESSION = "seen", "session"


@dataclass(frozen=True)
class Task:
    id: str
    request: dict[str, Any]


class Mailbox:
    """`folder` is made when the device's agent registers."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._tasks = folder, folder / "tasks"

    # ---- the job's half

    def post(self, request: dict[str, Any], files: Sequence[Path], images: Path | None) -> str:
        """request: as `vitfit.measuring` takes it, without files. Returns the task's id."""
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
        """What the agent said; None: not yet. Asking keeps the task alive. Raises: FileNotFoundError when it was thrown away."""
        path = self._tasks / task
        os.utime(path / REQUEST)
        found: dict[str, Any] | None = None
        if (path / ANSWER).exists():
            found = json.loads((path / ANSWER).read_text())
        return found

    def withdraw(self, task: str) -> None:
        shutil.rmtree(self._tasks / task, ignore_errors=True)

    def heard_at(self) -> float | None:
        """When the agent was last heard of, by the clock of the file system: worth comparing with itself only."""
        try:
            return (self._folder / SEEN).stat().st_mtime
        except FileNotFoundError:
            return None

    def silent_s(self) -> float:
        """How long the agent has not been heard of, for people to read: wrong for a moment after the clock was set."""
        heard_at = self.heard_at()
        return float("inf") if heard_at is None else max(0.0, time.time() - heard_at)

    # ---- the agent's half, through the server

    def open_session(self) -> str:
        """For an agent that registers. The one before it, if any, is out."""
        self._tasks.mkdir(parents=True, exist_ok=True)
        session = secrets.token_hex(16)
        write_whole(self._folder / SESSION, session)
        self.heard()
        return session

    def is_open(self, session: str) -> bool:
        try:
            return secrets.compare_digest((self._folder / SESSION).read_text(), session)
        except FileNotFoundError:
            return False

    def heard(self) -> None:
        (self._folder / SEEN).touch()

    def oldest(self) -> Task | None:
        """The oldest task without an answer that somebody waits for."""
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
        """A file that the task names."""
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
        except OSError:  # another file system
            shutil.copyfile(file, target)
    return {"sha256": digest, "bytes": file.stat().st_size}
