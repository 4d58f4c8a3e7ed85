"""The journal of a worker, which writes to the database of its server."""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from service.core.retry import patiently
from service.jobs.journal import require_stage
from service.jobs.leases import Lease, Leases

log = logging.getLogger("vitfit.job")


class StoredJournal:
    """The journal of a worker that holds `lease`. Every write raises `Fenced` once the lease is lost."""

    check_interval_s = 0.05
    most_notes: Final = 4
    """Upper limit on the notes that are written in as many seconds, so that the database is not asked too often.

    A note above the limit is written at a later call, or the next note is written instead.
    """

    def __init__(
        self,
        leases: Leases,
        lease: Lease,
        patience_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """patience_s: for how many seconds a call is retried if the database does not answer; then it raises `Away`.

        clock: returns seconds of a monotonic clock; for the time between two checks and between two notes.
        """
        self._leases, self._lease, self._patience_s, self._clock = leases, lease, patience_s, clock
        self._checked_at = float("-inf")
        self._note = self._stored_note = ""
        self._noted_at = deque([float("-inf")] * self.most_notes, maxlen=self.most_notes)

    def trials(self) -> list[dict[str, Any]]:
        return patiently(lambda: self._leases.trials(self._lease.job_id), self._patience_s)

    def record(self, trial: dict[str, Any]) -> None:
        def record(repeated: bool) -> None:
            self._leases.record(self._lease, trial, repeated)

        patiently(lambda: record(False), self._patience_s, again=lambda: record(True))

    def saved(self) -> None:
        patiently(lambda: self._leases.saved(self._lease), self._patience_s)

    def stage(self, name: str) -> None:
        require_stage(name)
        patiently(lambda: self._leases.stage(self._lease, name), self._patience_s)
        self._note = self._stored_note = ""
        self.check()

    def progress(self, done: int, total: int, best: float | None, seconds_left: float | None) -> None:
        patiently(
            lambda: self._leases.progress(self._lease, done, total, best, seconds_left=seconds_left), self._patience_s
        )
        self._note = self._stored_note = ""

    def note(self, words: str) -> None:
        if words and words != self._note:
            log.info("%s", words)
        self._note = words
        self._store_note()

    def _store_note(self) -> None:
        now = self._clock()
        if self._note == self._stored_note or now - self._noted_at[0] < self.most_notes:
            return
        patiently(lambda: self._leases.note(self._lease, self._note), self._patience_s)
        self._stored_note = self._note
        self._noted_at.append(now)

    def check(self) -> None:
        now = self._clock()
        if now - self._checked_at < self.check_interval_s:
            return  # engines may call this thousands of times per second
        patiently(lambda: self._leases.check(self._lease), self._patience_s)
        self._checked_at = now
        self._store_note()
