"""Limits on connections: how many there are, and how long one may take to send the headers of a request."""

import asyncio
import resource
import time
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S: Final = 20.0
"""Time for the headers of a request. A connection that has sent nothing so far has the same time."""
MOST: Final = 1_000
"""Upper limit on open connections."""
DESCRIPTORS: Final = 65_536
"""The server raises its limit of file descriptors to this number, or as far as the system allows."""


def raise_descriptors() -> int:
    """Raise the soft limit of file descriptors of this process. Return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def most_connections() -> int:
    """Return how many connections the server keeps open: half of the descriptors are for files and processes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, soft // 2))


class LimitedConnection(H11Protocol):
    """A connection of uvicorn with these limits.

    If there are too many connections, the one that has been idle longest makes room for a new one.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: asyncio.TimerHandle | None = None
        self._heard_at = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()
        if len(self.connections) > most_connections():
            idle = [one for one in self.connections if isinstance(one, LimitedConnection) and one.is_idle]
            min(idle, key=lambda one: one._heard_at).transport.abort()

    def data_received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        super().data_received(data)
        if self.is_idle:
            self._wait_for_headers()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _wait_for_headers(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if self.is_idle:
            self.transport.abort()
