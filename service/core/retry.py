"""Retry calls to a database or a storage that does not answer for a moment."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from service.core.errors import Away

log = logging.getLogger("vitfit.outage")
PAUSE_S = 0.5
T = TypeVar("T")


def patiently(call: Callable[[], T], patience_s: float, again: Callable[[], T] | None = None) -> T:
    """Call `call`, retry it while it raises `Away`, and return its value.

    Args:
        call: the call to make.
        patience_s: for how many seconds to retry.
        again: called instead of `call` from the second attempt on. It is for calls that may have succeeded although the
            answer was lost: it must accept that the first call has already taken effect.

    Raises: Away when the last attempt after `patience_s` still fails.
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
