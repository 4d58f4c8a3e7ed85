"""Where long work takes its turn, step by step: a trial, a step of training. Who runs it decides what a turn is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Turn = Callable[[], AbstractContextManager[None]]
_turn: ContextVar[Turn] = ContextVar("turn", default=nullcontext)


def step() -> AbstractContextManager[None]:
    """Around each step."""
    return _turn.get()()


def current() -> Turn:
    """What a turn is here, for another process."""
    return _turn.get()


@contextmanager
def paced(turn: Turn) -> Iterator[None]:
    """Steps inside take their turn so, such as `latency.measuring.machine_lock.working`."""
    token = _turn.set(turn)
    try:
        yield
    finally:
        _turn.reset(token)
