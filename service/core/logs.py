"""Logging of the server and its workers: plain text or one JSON object per line, with the ids of request and job.

The ids are bound to the current context (the task of a request, or a whole worker process), so every log line in that
context has them.
"""

import logging
import re
import sys
from contextlib import AbstractContextManager
from typing import Any, Final, TextIO

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, get_contextvars
from structlog.types import EventDict, Processor, WrappedLogger

from service.core.settings import LogFormat

TOKEN_PREFIX: Final = "vft_"
"""Every access token starts with this prefix, so that secret scanners can find a leaked one."""
SECRET: Final = re.compile(rf"{TOKEN_PREFIX}[\w-]+")
QUIET: Final = ("alembic", "matplotlib", "PIL")
"""Libraries whose messages below WARNING are not useful here."""


def set_up(log_format: LogFormat, stream: TextIO = sys.stderr) -> None:
    """Send all log records and Python warnings of this process to `stream`."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(log_format), _hide_secrets],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _rendering(log_format: LogFormat) -> list[Processor]:
    if log_format == "text":
        plain = structlog.dev.plain_traceback  # the default prints the values of all local variables, and takes seconds
        return [
            structlog.dev.ConsoleRenderer(
                colors=False, pad_event_to=0, pad_level=False, timestamp_key="time", exception_formatter=plain
            )
        ]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]


def _hide_secrets(_logger: WrappedLogger, _method: str, line: EventDict | str) -> str:
    """Mask access tokens. A client may put its token into a URL by mistake, and URLs are logged."""
    return SECRET.sub(f"{TOKEN_PREFIX}***", str(line))


def about(**ids: str | None) -> AbstractContextManager[None]:
    """Add these ids to every log line inside the `with` block. Ids that are None are left out."""
    return bound_contextvars(**{name: value for name, value in ids.items() if value is not None})


def bind(**ids: str | None) -> None:
    """Add these ids to every later log line of this context. Ids that are None are left out."""
    bind_contextvars(**{name: value for name, value in ids.items() if value is not None})


def request_id() -> str | None:
    """Return the id of the request that is being handled, or None outside a request."""
    found: Any = get_contextvars().get("request_id")
    return found if found is None else str(found)
