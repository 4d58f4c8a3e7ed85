"""Limit the number of requests per minute for each access token, or for each client address without a token.

The requests are counted in this process only. The window uses the monotonic clock, which a change of the system time
does not affect. (The library `limits` uses the time of day, and starts a thread for each request.)
"""

import collections
import hashlib
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.errors import TooMany
from service.middleware.problems import HEADERS, answer

FREE = ("/healthz", "/livez")
"""Health checks for monitoring. They need no token and have no rate limit."""
WINDOW_S = 60.0


class RateLimit:
    """ASGI middleware that answers 429 once a caller has sent `per_minute` requests within the last minute."""

    def __init__(self, app: ASGIApp, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._per_minute, self._clock = app, per_minute, clock
        self._taken: dict[str, collections.deque[float]] = {}
        self._swept_s = clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] not in FREE and not self._take(_who(scope)):
            error = TooMany(
                f"You have sent more than {self._per_minute} requests in one minute. Wait, or poll less often."
            )
            app = answer(error, HEADERS[429])
        await app(scope, receive, send)

    def _take(self, who: str) -> bool:
        """Count one more request of this caller if the limit allows it, and return whether it does.

        Called in the event loop only, so it needs no lock.
        """
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
        """Forget callers without a request in the last minute.

        Anybody can send new tokens, so the dictionary would otherwise grow without limit.
        """
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
