"""What a job's engine tells and asks while it works, and what it is given and gives back.

The engine sees the `Journal` only. `MemoryJournal` serves `vitfit compress` and tests; `StoredJournal` writes to the
database of a server, where every write is refused once another worker has taken the job over.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from models.errors import Canceled

Guarantee = Literal["measured", "predicted", "counted", "none"]
STAGES = ("validating", "ranking", "profiling", "searching", "verifying", "finetuning", "exporting", "reporting")


class Fenced(Canceled):
    """Another worker has the job now: stop, and write nothing more."""

    code = "fenced"


@dataclass(frozen=True)
class JobResult:
    """How a job ended well. `summary` is JSON and stands in the job's `result`."""

    guarantee: Guarantee
    summary: dict[str, Any]
    delivered_trial: int


class Journal(Protocol):
    """The record of one job."""

    def trials(self) -> list[dict[str, Any]]:
        """Finished trials in the order of their numbers, those of earlier attempts included."""

    def record(self, trial: dict[str, Any]) -> None:
        """Keep a finished trial; it is durable on return. Raises: ValueError when its number was recorded before."""

    def stage(self, name: str) -> None:
        """Say which of `STAGES` begins. Raises: ValueError on any other name."""

    def progress(self, done: int, total: int, best: float | None, seconds_left: float | None) -> None:
        """Say how far the search is, in trials; `best` is the best score so far (larger is better)."""

    def check(self) -> None:
        """Call often. Raises: Canceled when the user asked for it, Fenced when the job was taken over."""


def require_stage(name: str) -> str:
    """The name itself. Raises: ValueError unless it is one of `STAGES`."""
    if name not in STAGES:
        raise ValueError(f"unknown stage {name!r}; stages are {', '.join(STAGES)}")
    return name


@dataclass
class MemoryJournal:
    """A journal without a database. `cancel()` makes the next `check` raise."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    last_progress: tuple[int, int, float | None, float | None] | None = None
    on_change: Callable[["MemoryJournal"], None] | None = None
    canceled: bool = False

    def trials(self) -> list[dict[str, Any]]:
        return sorted(self.rows, key=lambda row: int(row["number"]))

    def record(self, trial: dict[str, Any]) -> None:
        if any(row["number"] == trial["number"] for row in self.rows):
            raise ValueError(f"trial {trial['number']} was recorded before")
        self.rows.append(trial)
        self._changed()

    def stage(self, name: str) -> None:
        self.stages.append(require_stage(name))
        self._changed()

    def progress(self, done: int, total: int, best: float | None, seconds_left: float | None) -> None:
        self.last_progress = (done, total, best, seconds_left)
        self._changed()

    def check(self) -> None:
        if self.canceled:
            raise Canceled("The job was canceled.")

    def cancel(self) -> None:
        """Make the next `check` raise `Canceled`."""
        self.canceled = True

    def _changed(self) -> None:
        if self.on_change:
            self.on_change(self)
