"""Where trials are evaluated: here, one after the other, or elsewhere, several at a time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from search.loop.trial import Score
from search.policy import Policy

Evaluate = Callable[[Policy], Score]


@dataclass(frozen=True)
class Evaluated:
    """A score, and the seconds that it took where it was computed."""

    score: Score
    seconds: float


Waiting = Callable[[], Evaluated]
"""Calling it waits for the score. Raises: what the evaluation raised, or what ends the wait."""


class Executor(Protocol):
    def begin(self, policy: Policy) -> Waiting:
        """Takes a policy in hand and returns at once. Who begins several gets the same scores in any order of waiting."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """In this process, each when it is waited for."""

    evaluate: Evaluate

    def begin(self, policy: Policy) -> Waiting:
        return lambda: timed(self.evaluate, policy)


def timed(evaluate: Evaluate, policy: Policy) -> Evaluated:
    began = time.perf_counter()
    score = evaluate(policy)
    return Evaluated(score, time.perf_counter() - began)
