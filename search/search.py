"""The search: propose a direction, decode it onto the budgets, evaluate, record. Reads as its own description."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from search.budgets import Budgets
from search.decode import Price, decode
from search.objective import BestScore, Objective
from search.policy import Policy
from search.searcher import Proposal, by_expected_improvement
from search.spaces.space import Space
from search.trial import Score, Trial

Evaluate = Callable[[Policy], Score]
START_SHARE = 4
"""At most one in so many trials is an analytic starting point."""
START_DEPTH = 0.75
TRIES, STRIDE = 50, 20
"""The best proposals are neighbours, which in a small network may all mean known structures: then some of the others."""


@dataclass
class Search:
    """What stays the same over a search. `record` must be durable when it returns."""

    space: Space
    budgets: Budgets
    price: Price
    evaluate: Evaluate
    record: Callable[[Trial], None]
    seed: int
    propose: Proposal = by_expected_improvement
    objective: Objective = field(default_factory=BestScore)

    def run(self, done: Sequence[Trial], total: int) -> list[Trial]:
        """All trials, `done` among them, once there are `total` (or no new policy is left).

        Raises: ImpossibleBudget when no policy meets the budgets.
        """
        trials = list(done)
        while len(trials) < total:
            found = self._next(trials, total)
            if found is None:
                break
            direction, policy, start = found
            trials.append(self.try_policy(len(trials), direction, policy, start))
        return trials

    def try_policy(self, number: int, direction: Sequence[float], policy: Policy, start: bool = False) -> Trial:
        """Evaluates and records one policy."""
        began = time.perf_counter()
        structure = self.space.sketch(policy)
        costs = [float(cost) for cost in self.price([structure])[0]]
        score = self.evaluate(policy)
        labelled = {budget.label: cost for budget, cost in zip(self.budgets.items, costs, strict=True)}
        value = self.objective.value(score, self.budgets, costs)
        trial = Trial(
            number, tuple(direction), policy, structure.key, value, score.accuracy, score.agreement, labelled,
            "predicted", time.perf_counter() - began, start, self.objective.allows(score),
        )  # fmt: skip
        self.record(trial)
        return trial

    def rescored(self, trial: Trial, score: Score) -> Trial:
        """The trial with the score of another evaluation of its policy."""
        value = self.objective.value(score, self.budgets, list(trial.costs.values()))
        return dataclasses.replace(
            trial, score=value, accuracy=score.accuracy, agreement=score.agreement, allowed=self.objective.allows(score)
        )

    def finalists(self, trials: Sequence[Trial], count: int, evaluate: Evaluate) -> list[Trial]:
        """The best `count`, best first by a dearer evaluation than the trials had."""
        return best([self.rescored(trial, evaluate(trial.policy)) for trial in best(trials)[:count]])

    def decoded(self, direction: Sequence[float]) -> Policy:
        """The largest policy along a direction within what the objective aims at."""
        aims = self.objective.aims(self.budgets, direction)
        return decode(self.space, direction[: len(self.space.dimensions)], aims, self.price)

    def _next(self, trials: list[Trial], total: int) -> tuple[list[float], Policy, bool] | None:
        seen = {trial.structure_key for trial in trials}
        starts = [s + [START_DEPTH] * self.objective.extra for s in self.space.starts()]
        starts = starts[: max(1, total // START_SHARE)]
        for direction in starts[sum(trial.start for trial in trials) :]:
            policy = self.decoded(direction)
            if self.space.sketch(policy).key not in seen:
                return direction, policy, True
        return self._proposed(trials, seen)

    def _proposed(self, trials: list[Trial], seen: set[str]) -> tuple[list[float], Policy, bool] | None:
        """The best proposal whose structure is new. The seed of a proposal depends on its number alone."""
        points, scores = [t.direction for t in trials], [t.score for t in trials]
        seed = self.seed * 100003 + len(trials)
        dimensions = len(self.space.dimensions) + self.objective.extra
        proposals = self.propose(points, scores, dimensions, seed, self.space.canonical)
        for direction in proposals[:TRIES] + proposals[TRIES::STRIDE]:
            policy = self.decoded(direction)
            if self.space.sketch(policy).key not in seen:
                return direction, policy, False
        return None


def best(trials: Sequence[Trial]) -> list[Trial]:
    """What is allowed first, then best score first; of equals the earlier."""
    return sorted(trials, key=lambda trial: (not trial.allowed, -trial.score, trial.number))
