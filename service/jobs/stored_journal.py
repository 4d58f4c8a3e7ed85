"""The journal of a worker, which writes to the database of its server."""

import time
from typing import Any

from service.core.retry import patiently
from service.jobs.journal import require_stage
from service.jobs.leases import Lease, Leases


class StoredJournal:
    """The journal of a worker that holds `lease`. Every write raises `Fenced` once the lease is lost."""

    check_interval_s = 0.05

    def __init__(self, leases: Leases, lease: Lease, patience_s: float = 0.0) -> None:
        """patience_s: for how many seconds a call is retried if the database does not answer; then it raises `Away`."""
        self._leases, self._lease, self._patience_s = leases, lease, patience_s
        self._checked_at = float("-inf")

    def trials(self) -> list[dict[str, Any]]:
        return patiently(lambda: self._leases.trials(self._lease.job_id), self._patience_s)

    def record(self, trial: dict[str, Any]) -> None:
        def record(repeated: bool) -> None:
            self._leases.record(self._lease, trial, repeated)

        patiently(lambda: record(False), self._patience_s, again=lambda: record(True))

    def stage(self, name: str) -> None:
        require_stage(name)
        patiently(lambda: self._leases.stage(self._lease, name), self._patience_s)
        self.check()

    def progress(self, done: int, total: int, best: float | None, seconds_left: float | None) -> None:
        patiently(
            lambda: self._leases.progress(self._lease, done, total, best, seconds_left=seconds_left), self._patience_s
        )

    def check(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < self.check_interval_s:
            return  # engines may call this thousands of times per second
        patiently(lambda: self._leases.check(self._lease), self._patience_s)
        self._checked_at = now
