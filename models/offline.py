"""Keeps code that reads an upload off the network.

Libraries that read models may download what a file names: a backbone, a configuration. Inside `offline()`, the hub of
Hugging Face is switched off, and Python refuses every connection and every look-up of a name, also to this machine.
Unix sockets are allowed.

Threads that run already when the block begins are not affected: a worker renews its lease from such a thread.
"""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

CALLS = frozenset(
    [
        *("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
        *("socket.gethostbyname", "socket.gethostbyaddr"),
    ]
)
"""The audit events of Python that lead to the network."""
ON_SOCKETS = ("socket.connect", "socket.sendto", "socket.sendmsg")
"""The events whose first value is a socket."""


class NoNetwork(ConnectionError):
    """The code that reads an upload has tried to use the network."""


class _Guard:
    """Counts the open blocks, and knows the threads that are outside of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._installed = False
        self._blocks: list[frozenset[int | None]] = []
        """For each open block, the threads that may use the network."""

    def enter(self) -> None:
        with self._lock:
            if not self._installed:
                sys.addaudithook(self._on_event)  # a hook cannot be removed
                self._installed = True
            others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
            self._blocks = [*self._blocks, frozenset(others)]

    def leave(self) -> None:
        with self._lock:
            self._blocks = self._blocks[:-1]

    def _on_event(self, event: str, values: tuple[Any, ...]) -> None:
        if not self._blocks or event not in CALLS:
            return
        if event in ON_SOCKETS and values[0].family == socket.AF_UNIX:
            return
        if any(threading.get_ident() not in free for free in self._blocks):
            raise NoNetwork("vitfit does not use the network while it reads an upload")


_guard = _Guard()


@contextmanager
def offline() -> Iterator[None]:
    """Refuse the network to this thread, and to threads that start inside the block. May be used as a decorator."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    _guard.enter()
    try:
        yield
    finally:
        _guard.leave()
        constants.HF_HUB_OFFLINE = before


def wanted_network(error: BaseException | None) -> bool:
    """Return whether an error, or one in its chain of causes, is about a connection that `offline` has refused."""
    while error is not None:
        if isinstance(error, NoNetwork | OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False
