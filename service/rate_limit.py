"""At most so many requests per minute of one token, or of one address without a token. Counted in this process."""

import hashlib
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import TooMany
from service.problems import HEADERS, answer

FREE = ("/healthz",)


class RateLimit:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        self._app, self._limit = app, RateLimitItemPerMinute(per_minute)
        self._counted = MemoryStorage()
        self._window, self._latest = MovingWindowRateLimiter(self._counted), 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] not in FREE and not self._hit(_who(scope)):
            error = TooMany(f"More than {self._limit.amount} requests in a minute. Wait, or poll less often.")
            app = answer(error, HEADERS[429])
        await app(scope, receive, send)

    def _hit(self, who: str) -> bool:
        """The window goes by the time of day: set back by an hour, requests of "the future" would fill it for an hour."""
        before, self._latest = self._latest, time.time()
        if self._latest < before:
            self._counted.reset()
        return self._window.hit(self._limit, who)


def _who(scope: Scope) -> str:
    headers = dict(scope["headers"])
    token = headers.get(b"authorization")
    if token:
        return hashlib.sha256(token).hexdigest()
    client = scope.get("client")
    return str(client[0]) if client else ""
