"""Measure how long a value stays unchanged, with the monotonic clock of this process.

The wall clock of a machine can jump by hours, and the clocks of two servers can differ. Leases are therefore not
compared by date. Instead, each server remembers when it last saw a lease change, so it can decide on its own that the
lease has not changed for 30 s.
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
    """Remembers, for each key, its last value and when that value was first seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: returns seconds of a monotonic clock."""
        self._clock = clock
        self._seen: dict[Hashable, _Seen] = {}

    def look(self, key: Hashable, value: object = None, already_s: float = 0.0) -> tuple[float, int]:
        """Record the current value of a key.

        Args:
            key: what is watched.
            value: its current value.
            already_s: for how many seconds the value was unchanged before the first call. Later calls ignore it.

        Returns: for how many seconds the value has been unchanged, and how often it has changed since the first call.
        """
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen(value, self._clock() - already_s)
        elif seen.value != value:
            self._seen[key] = seen = _Seen(value, self._clock(), seen.changes + 1)
        return self._clock() - seen.at_s, seen.changes

    def keep(self, keys: Collection[Hashable]) -> None:
        """Forget every key that is not in `keys`."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}


class SteadyCalendar:
    """A clock for deleting old things. A forward jump of the machine's wall clock never makes anything look older."""

    def __init__(self, wall: Callable[[], datetime], clock: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._clock = wall, clock
        self._began, self._began_s = wall(), clock()

    def now(self) -> datetime:
        """Return the wall clock time, but never more than the time of the start plus the monotonic time since then."""
        return min(self._wall(), self._began + timedelta(seconds=self._clock() - self._began_s))
