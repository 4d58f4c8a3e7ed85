"""The journal of a job: how the engine reports trials and progress, and learns that it has to stop.

The engine only sees the `Journal` protocol. `MemoryJournal` is for `vitfit compress` and tests. `StoredJournal`
writes to the database of a server, which refuses every write once another worker has taken over the job.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.errors import Canceled

STAGES = (
    "validating",
    "ranking",
    "profiling",
    "searching",
    "verifying",
    "healing",
    "finetuning",
    "exporting",
    "reporting",
)


class Fenced(Canceled):
    """This worker has lost the lease of its job. It must stop and write nothing more."""

    code = "fenced"


class Journal(Protocol):
    """The record of one job."""

    def trials(self) -> list[dict[str, Any]]:
        """Return the finished trials, including those of earlier attempts, in the order of their numbers."""

    def record(self, trial: dict[str, Any]) -> None:
        """Store a finished trial durably. Raises: ValueError when a trial with its number is already stored."""

    def saved(self) -> None:
        """Report that something new is stored from which the next attempt continues, such as an epoch of a training.

        It is progress, like a new trial: crashes before it do not count towards the limit on crashes. An engine must
        not call this for what an earlier attempt has stored.
        """

    def stage(self, name: str) -> None:
        """Report which of `STAGES` begins. Raises: ValueError for any other name."""

    def progress(self, done: int, total: int, best: float | None, seconds_left: float | None) -> None:
        """Report the progress of the search in trials. `best` is the best score so far (larger is better)."""

    def note(self, words: str) -> None:
        """Report in a few words what the job does now, or what it waits for. An empty text: there is nothing to say.

        The words stand until the next note, stage or progress. An engine may call this often.
        """

    def check(self) -> None:
        """Check whether the engine has to stop. The engine calls this often.

        Raises: Canceled when the user has canceled the job; Fenced when the lease is lost.
        """


def require_stage(name: str) -> str:
    """Return `name`. Raises: ValueError if it is not one of `STAGES`."""
    if name not in STAGES:
        raise ValueError(f"unknown stage {name!r}; stages are {', '.join(STAGES)}")
    return name


@dataclass
class MemoryJournal:
    """A journal without a database. `cancel()` makes the next `check` raise."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    last_progress: tuple[int, int, float | None, float | None] | None = None
    last_note: str = ""
    saves: int = 0
    on_change: Callable[["MemoryJournal"], None] | None = None
    canceled: bool = False

    def trials(self) -> list[dict[str, Any]]:
        return sorted(self.rows, key=lambda row: int(row["number"]))

    def record(self, trial: dict[str, Any]) -> None:
        if any(row["number"] == trial["number"] for row in self.rows):
            raise ValueError(f"trial {trial['number']} was recorded before")
        self.rows.append(trial)
        self._changed()

    def saved(self) -> None:
        self.saves += 1

    def stage(self, name: str) -> None:
        self.stages.append(require_stage(name))
        self.last_note = ""
        self._changed()

    def progress(self, done: int, total: int, best: float | None, seconds_left: float | None) -> None:
        self.last_progress = (done, total, best, seconds_left)
        self.last_note = ""
        self._changed()

    def note(self, words: str) -> None:
        self.last_note = words
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
