"""What the server and its workers write: lines for people, or one JSON object per line, with the ids of request and job.

Ids are bound to the context (a request's task, a worker's whole process), so that every logger below says them.
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
"""Of access tokens, so that a leaked one can be found by those who look for it."""
SECRET: Final = re.compile(rf"{TOKEN_PREFIX}[\w-]+")
QUIET: Final = ("alembic", "matplotlib", "PIL")
"""Libraries whose remarks help nobody here."""


def set_up(log_format: LogFormat, stream: TextIO = sys.stderr) -> None:
    """Everything that is logged in this process, warnings of Python too, goes to `stream` from now on."""
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
        return [structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, pad_level=False, timestamp_key="time")]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]


def _hide_secrets(_logger: WrappedLogger, _method: str, line: EventDict | str) -> str:
    """Who puts his token into an address finds it in no log."""
    return SECRET.sub(f"{TOKEN_PREFIX}***", str(line))


def about(**ids: str | None) -> AbstractContextManager[None]:
    """Lines that are logged inside are about this job, this request; None: of no known one."""
    return bound_contextvars(**{name: value for name, value in ids.items() if value is not None})


def bind(**ids: str | None) -> None:
    """As `about`, for the rest of this context."""
    bind_contextvars(**{name: value for name, value in ids.items() if value is not None})


def request_id() -> str | None:
    """Of the request that is being answered."""
    found: Any = get_contextvars().get("request_id")
    return found if found is None else str(found)
