"""How long things stay as they are, by this process's own clock, which nobody sets: the machine's time of day may jump by hours.

Whoever watches leases remembers when he saw each one change. What two processes write into the database they may read with
different clocks; that something has not changed for 30 s everybody can see for himself.
"""

import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass
class _Seen:
    value: object
    at_s: float
    changes: int = 0


class Stopwatch:
    """One value under each key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds that never jump."""
        self._clock = clock
        self._seen: dict[Hashable, _Seen] = {}

    def look(self, key: Hashable, value: object = None, already_s: float = 0.0) -> tuple[float, int]:
        """For how many seconds the key has been seen with this value, and how often that has changed.

        already_s: how long it was so before the first look.
        """
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen(value, self._clock() - already_s)
        elif seen.value != value:
            self._seen[key] = seen = _Seen(value, self._clock(), seen.changes + 1)
        return self._clock() - seen.at_s, seen.changes

    def keep(self, keys: Collection[Hashable]) -> None:
        """Forget all others."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}


class SteadyCalendar:
    """The date, for what is thrown away when it is old: no jump of the machine's clock makes anything older."""

    def __init__(self, wall: Callable[[], datetime], clock: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._clock = wall, clock
        self._began, self._began_s = wall(), clock()

    def now(self) -> datetime:
        """The earlier of what the machine says and what has gone by since this process began."""
        return min(self._wall(), self._began + timedelta(seconds=self._clock() - self._began_s))
