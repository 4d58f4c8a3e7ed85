"""Refuse what a browser sends for a page of another origin.

Any page that a person opens can make their browser send requests to this server, and the browser sends them from the
person's own machine. Browsers say so: `Sec-Fetch-Site` and `Origin` cannot be set by a page. Programs that are no
browsers send neither.
"""

from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.errors import Forbidden
from service.middleware.problems import answer

LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")
SAFE: Final = ("GET", "HEAD")


class SameOrigin:
    """ASGI middleware that answers 403 to requests of other origins' pages.

    A link on another page may open a page here. Without access tokens (`anonymous`), the server must also be addressed
    by a name of this machine. Otherwise a page of a name that an attacker lets lead to 127.0.0.1 would be of this
    origin.
    """

    def __init__(self, app: ASGIApp, anonymous: bool) -> None:
        self._app, self._anonymous = app, anonymous

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = _objection(scope, self._anonymous) if scope["type"] == "http" else None
        app = answer(error) if error else self._app
        await app(scope, receive, send)


def _objection(scope: Scope, anonymous: bool) -> Forbidden | None:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get("host", "")
    if anonymous and _name_of(host) not in LOOPBACK_NAMES:
        return Forbidden(
            f"This server has no access tokens, so it answers at {', '.join(LOOPBACK_NAMES)} only, not at"
            f" {_name_of(host)[:100]!r}. Use one of these names, or start the server without --anonymous."
        )
    site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
    origin = headers.get("origin")
    if site is None:
        foreign = origin is not None and urlsplit(origin).netloc != host
    else:
        foreign = site not in ("same-origin", "none") and not (mode == "navigate" and scope["method"] in SAFE)
    if not foreign:
        return None
    return Forbidden(
        "A page of another origin has sent this request, so it is refused. Open the page of this server itself, or send"
        " the request from a program."
    )


def _name_of(host: str) -> str:
    """Return the name in a Host header, without the port."""
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
