"""Waiting for a database or a storage that has gone away for a moment."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from service.core.errors import Away

log = logging.getLogger("vitfit.outage")
PAUSE_S = 0.5
T = TypeVar("T")


def patiently(call: Callable[[], T], patience_s: float, again: Callable[[], T] | None = None) -> T:
    """The value of `call`, which is repeated while what it asks is away, for at most `patience_s`.

    again: what is called from the second time on, where it matters that the first may have gone through unheard.
    Raises: Away when the patience is at its end.
    """
    end, first = time.monotonic() + patience_s, True
    while True:
        try:
            return call()
        except Away as away:
            if time.monotonic() > end:
                raise
            if first:
                log.warning("waiting for at most %g s: %s", patience_s, away)
        call, first = again or call, False
        time.sleep(PAUSE_S)
