"""Throttle for long-running work such as trials and training.

Each trial or training step runs inside `step()`, which can wait while another process measures. The caller that starts
the work chooses how a step waits, with `paced`. By default a step does not wait.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Turn = Callable[[], AbstractContextManager[None]]
_turn: ContextVar[Turn] = ContextVar("turn", default=nullcontext)


def step() -> AbstractContextManager[None]:
    """Return the context manager that each step of long work must run in."""
    return _turn.get()()


def current() -> Turn:
    """Return the throttle that applies here, so that another process can be started with the same one."""
    return _turn.get()


@contextmanager
def paced(turn: Turn) -> Iterator[None]:
    """Run the steps inside the block under `turn`, for example `latency.measuring.machine_lock.working`."""
    token = _turn.set(turn)
    try:
        yield
    finally:
        _turn.reset(token)
