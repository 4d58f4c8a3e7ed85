"""Limit the number of requests per minute for each access token, or for each client address without a known token.

A token is known once a request with it was not answered by 401. Until then its requests count for the address, because
anybody can make up new tokens.
The requests are counted in this process only. The window uses the monotonic clock, which a change of the system time
does not affect. (The library `limits` uses the time of day, and starts a thread for each request.)
"""

import collections
import hashlib
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core.errors import TooMany
from service.middleware.problems import HEADERS, answer

FREE = ("/healthz", "/livez")
"""Health checks for monitoring. They need no token and have no rate limit."""
WINDOW_S, REMEMBERED_S = 60.0, 3600.0
"""REMEMBERED_S: how long a token stays known after its last request."""


class RateLimit:
    """ASGI middleware that answers 429 once a caller has sent `per_minute` requests within the last minute."""

    def __init__(self, app: ASGIApp, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._per_minute, self._clock = app, per_minute, clock
        self._taken: dict[str, collections.deque[float]] = {}
        self._known: dict[str, float] = {}
        """Known tokens, as digests, each with the time of its last request."""
        self._swept_s = clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in FREE:
            await self._app(scope, receive, send)
            return
        token = _token(scope)
        if not self._take(token if token in self._known else _address(scope)):
            error = TooMany(
                f"You have sent more than {self._per_minute} requests in one minute. Wait, or poll less often."
            )
            await answer(error, HEADERS[429])(scope, receive, send)
            return

        async def learning(message: Message) -> None:
            if token and message["type"] == "http.response.start":
                if message["status"] == 401:
                    self._known.pop(token, None)
                else:
                    self._known[token] = self._clock()
            await send(message)

        await self._app(scope, receive, learning)

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
            self._known = {token: last_s for token, last_s in self._known.items() if now_s - last_s < REMEMBERED_S}


def _token(scope: Scope) -> str:
    """Return a digest of the access token of a request, or an empty text."""
    token = dict(scope["headers"]).get(b"authorization")
    return hashlib.sha256(token).hexdigest() if token else ""


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
