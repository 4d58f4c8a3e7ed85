"""Where trials are evaluated: in this process, one after the other, or elsewhere, several at a time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from search.loop.trial import Score
from search.policy import Policy

Evaluate = Callable[[Policy], Score]


@dataclass(frozen=True)
class Evaluated:
    """A score, and the seconds that its evaluation took."""

    score: Score
    seconds: float


Waiting = Callable[[], Evaluated]
"""A call waits for the score and returns it. Raises: the error of the evaluation, or the error that ends the wait."""


class Executor(Protocol):
    def begin(self, policy: Policy) -> Waiting:
        """Accept a policy and return at once. If several are begun, the order of waiting does not change the scores."""
        ...


@dataclass(frozen=True)
class Executors:
    """Where policies are evaluated on all images, and where on a part of the images."""

    whole: Executor
    part: Executor


@dataclass(frozen=True)
class LocalExecutor:
    """Evaluates in this process. An evaluation starts when somebody waits for its score."""

    evaluate: Evaluate

    def begin(self, policy: Policy) -> Waiting:
        return lambda: timed(self.evaluate, policy)


def timed(evaluate: Evaluate, policy: Policy) -> Evaluated:
    began = time.perf_counter()
    score = evaluate(policy)
    return Evaluated(score, time.perf_counter() - began)
