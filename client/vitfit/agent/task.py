"""The tasks of an agent as its server sends them, and the check of their values before the agent uses them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitfit.errors import VitfitError

DIGEST = re.compile(r"[0-9a-f]{64}")
TASK_ID = re.compile(r"[0-9A-Za-z_-]{1,100}")
SESSION = re.compile(r"[0-9A-Za-z_.-]{1,200}")
PROVIDER = re.compile(r"\w{1,100}")
ODD_TASK = "odd-task"
MOST_FILES = 256
LIMITS: dict[str, tuple[int, int]] = {
    "threads": (1, 1024),
    "batch": (1, 2**16),
    "rounds": (1, 10**5),
    "seed": (0, 2**63 - 1),
}
MOST_SECONDS = 600.0


class OddTask(Exception):
    """A task with a value that no vitfit server sends. The message names it."""


@dataclass(frozen=True)
class TaskFile:
    """A file of a task. sha256: 64 hexadecimal digits, so that it can be the name of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Task:
    """What an agent measures. Every value was checked."""

    id: str
    files: tuple[TaskFile, ...]
    images: TaskFile | None
    setting: dict[str, Any]
    """threads, batch, provider, seconds, rounds and seed, as `vitfit.measuring` takes them."""

    @property
    def all_files(self) -> tuple[TaskFile, ...]:
        return self.files if self.images is None else (*self.files, self.images)


def task_id(answer: Mapping[str, Any]) -> str:
    """Return the id of a task. Raises: VitfitError if there is none, so that the server cannot be told a reason."""
    found = answer.get("id")
    if not isinstance(found, str) or not TASK_ID.fullmatch(found):
        raise VitfitError.local(
            ODD_TASK,
            f"The server sent a task without a usable id: {_short(found)}. Check that the server is a vitfit server.",
        )
    return found


def read_task(answer: Mapping[str, Any]) -> Task:
    """Check a task that a server sent. Raises: VitfitError for an unusable id; OddTask for any other value."""
    number, files = task_id(answer), answer.get("files")
    if not isinstance(files, list) or not 1 <= len(files) <= MOST_FILES:
        raise OddTask(f"files must be a list of 1 to {MOST_FILES} files")
    images = answer.get("images")
    setting: dict[str, Any] = {name: _whole(answer, name, *limits) for name, limits in LIMITS.items()}
    setting["provider"] = _provider(answer.get("provider"))
    setting["seconds"] = _seconds(answer.get("seconds"))
    return Task(number, tuple(map(_file, files)), None if images is None else _file(images), setting)


def _file(entry: Any) -> TaskFile:
    if not isinstance(entry, dict):
        raise OddTask(f"a file is {_short(entry)}, but it must be an object with sha256 and bytes")
    digest = entry.get("sha256")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise OddTask(f"sha256 is {_short(digest)}, but it must be 64 hexadecimal digits")
    return TaskFile(digest, _whole(entry, "bytes", 0, 2**63 - 1))


def _whole(values: Mapping[str, Any], name: str, least: int, most: int) -> int:
    found = values.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise OddTask(f"{name} is {_short(found)}, but it must be a whole number from {least} to {most}")
    return found


def _provider(found: Any) -> str:
    if not isinstance(found, str) or not PROVIDER.fullmatch(found):
        raise OddTask(f"provider is {_short(found)}, but it must be the name of an execution provider")
    return found


def _seconds(found: Any) -> float:
    numeric = isinstance(found, int | float) and not isinstance(found, bool)
    if not numeric or not math.isfinite(found) or not 0 <= found <= MOST_SECONDS:
        raise OddTask(f"seconds is {_short(found)}, but it must be a number from 0 to {MOST_SECONDS:g}")
    return float(found)


def _short(value: Any) -> str:
    """Return a value for a message. An int of thousands of digits cannot be written out."""
    if isinstance(value, int) and abs(value) > 2**64:
        return "a number of more than 64 bits"
    return repr(value)[:60]
