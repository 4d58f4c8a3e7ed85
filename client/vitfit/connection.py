"""Send requests and repeat them after a network error, with growing pauses, but only if a repeat is safe."""

import contextlib
import email.utils
import ipaddress
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from vitfit.errors import VitfitError, error_from_response

TRANSIENT_STATUS = (429, 502, 503, 504)
REPEATABLE_METHODS = ("GET", "HEAD", "DELETE")
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0


class Connection:
    """The connection to one server. Every response with status 400 or higher is raised as a `VitfitError`."""

    def __init__(
        self,
        server: str,
        retries: int,
        timeout_s: float,
        transport: httpx.BaseTransport | None = None,
        *,
        token: str | None = None,
    ) -> None:
        self.server = server.rstrip("/")
        self.retries = retries
        if not self.server.startswith(("http://", "https://")):
            raise VitfitError.local(
                "invalid-address", f"{server!r} is not an address of a server. Write it like http://127.0.0.1:8000."
            )
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0))
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self._http = httpx.Client(
            base_url=self.server,
            timeout=timeout,
            transport=transport,
            headers=headers,
            trust_env=not _is_loopback(self.server),  # a proxy cannot reach a server on this machine
        )

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()

    def request(
        self, method: str, path: str, *, files: Callable[[], Any] | None = None, **extra: Any
    ) -> httpx.Response:
        """Send a request until the server answers or the retries are used up.

        `files` is called again for each attempt, so that a repeated upload starts at the first byte.
        A POST is repeated only if it carries an `Idempotency-Key`.
        """
        repeatable = method in REPEATABLE_METHODS or "Idempotency-Key" in (extra.get("headers") or {})
        for attempt in range(self.retries + 1):
            last = attempt == self.retries or not repeatable
            try:
                with contextlib.ExitStack() as stack:
                    parts = {"files": _opened(files, stack)} if files else {}
                    response = self._http.request(method, path, **extra, **parts)
            except httpx.TransportError as error:
                if last:
                    raise self.unreachable(error) from error
                time.sleep(pause_s(attempt))
                continue
            if response.status_code in TRANSIENT_STATUS and not last:
                time.sleep(retry_after_s(response, default=pause_s(attempt)))
                continue
            if response.status_code >= 400:
                raise error_from_response(response)
            return response
        raise AssertionError("unreachable: the last attempt returns or raises")

    def json(self, method: str, path: str, **extra: Any) -> Any:
        """Send a request as `request` does, and return the JSON body of the response."""
        response = self.request(method, path, **extra)
        try:
            return response.json()
        except ValueError as error:
            raise VitfitError.local(
                "not-a-vitfit-server",
                f"{response.request.url} did not answer with JSON. "
                f"Check that {self.server} is the address of a vitfit server.",
            ) from error

    @contextlib.contextmanager
    def stream(
        self, path: str, headers: dict[str, str], *, method: str = "GET", redirects: bool = True, **extra: Any
    ) -> Iterator[httpx.Response]:
        """Send one request without retries and let the caller read the body.

        redirects: whether to follow the server, for example to its bucket. The access token is not sent there.

        Raises: httpx.TransportError after a network error, because the caller knows how to resume.
        """
        with self._http.stream(method, path, headers=headers, follow_redirects=redirects, **extra) as response:
            yield response

    def unreachable(self, error: Exception) -> VitfitError:
        """Return the error for a server that does not answer."""
        if isinstance(error, httpx.TimeoutException):
            reason = "did not answer in time"
        elif isinstance(error, httpx.ConnectError):
            reason = "cannot be reached"
        else:
            reason = f"closed the connection too early ({type(error).__name__})"
        return VitfitError.local(
            "unreachable",
            f"The vitfit server at {self.server} {reason}. Start it with `vitfit serve`, "
            "or name another server with --server or VITFIT_SERVER.",
            server=self.server,
        )


def pause_s(attempt: int) -> float:
    """Return the pause in seconds before repeat number `attempt` (from 0): about 0.25, 0.5, 1 ... up to 30.

    Each pause is varied at random by up to 20 %, so that many clients do not repeat at the same moment.
    """
    return min(FIRST_PAUSE_S * 2.0**attempt, LONGEST_PAUSE_S) * random.uniform(0.8, 1.2)


def retry_after_s(response: httpx.Response, default: float) -> float:
    """Return the `Retry-After` of a response, which may be seconds or a date, as seconds from 0 to 30."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return default
    return min(max(seconds, 0.0), LONGEST_PAUSE_S)


def _opened(files: Callable[[], Any], stack: contextlib.ExitStack) -> Any:
    parts = files()
    for part in parts.values():
        if hasattr(part[1], "close"):
            stack.callback(part[1].close)
    return parts


def _is_loopback(server: str) -> bool:
    host = httpx.URL(server).host
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
