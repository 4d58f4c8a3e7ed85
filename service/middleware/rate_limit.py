"""At most so many requests per minute of one token, or of one address without a token. Counted in this process.

The window goes by a clock that nobody sets. (The library `limits` has one that goes by the time of day, and starts a thread for each request.)
"""

import collections
import hashlib
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.errors import TooMany
from service.middleware.problems import HEADERS, answer

FREE = ("/healthz", "/livez")
"""For those who watch the server: without a token, as often as they like."""
WINDOW_S = 60.0


class RateLimit:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._per_minute, self._clock = app, per_minute, clock
        self._taken: dict[str, collections.deque[float]] = {}
        self._swept_s = clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] not in FREE and not self._take(_who(scope)):
            error = TooMany(f"More than {self._per_minute} requests in a minute. Wait, or poll less often.")
            app = answer(error, HEADERS[429])
        await app(scope, receive, send)

    def _take(self, who: str) -> bool:
        """Whether one more is allowed within the last minute; it is counted then. Called in the event loop only."""
        now_s = self._clock()
        self._sweep(now_s)
        taken = self._taken.setdefault(who, collections.deque())
        while taken and now_s - taken[0] >= WINDOW_S:
            taken.popleft()
        if len(taken) >= self._per_minute:
            return False
        taken.append(now_s)
        return True

    def _sweep(self, now_s: float) -> None:
        """Forget who has not asked for a minute: names come from strangers."""
        if now_s - self._swept_s >= WINDOW_S:
            self._swept_s = now_s
            self._taken = {who: taken for who, taken in self._taken.items() if taken and now_s - taken[-1] < WINDOW_S}


def _who(scope: Scope) -> str:
    headers = dict(scope["headers"])
    token = headers.get(b"authorization")
    if token:
        return hashlib.sha256(token).hexdigest()
    client = scope.get("client")
    return str(client[0]) if client else ""
