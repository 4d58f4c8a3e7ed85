"""The search: propose a direction, decode it onto the budgets, evaluate the policy, record the trial."""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from models.errors import ImpossibleBudget
from search.budgets import Budgets
from search.loop.decode import Price, decode, refitted
from search.loop.executor import Evaluate, Executor, Waiting
from search.loop.local_search import STEPS, LocalSearch
from search.loop.objective import BestScore, Objective
from search.loop.searcher import Proposal, by_expected_improvement
from search.loop.trial import Score, Trial
from search.policy import Policy
from search.spaces.space import Space

START_SHARE = 4
"""At most one in this many trials is an analytic starting point."""
START_DEPTH = 0.75
LOCAL_SHARE = 4
"""One in this many trials is a step of the local search, if there is one. These are the last trials."""
TRIES, STRIDE = 50, 20
"""The first TRIES proposals are tried, then every STRIDE-th of the others. The best proposals are neighbours; in a
small network all of them may decode to structures that were evaluated before."""


@dataclass(frozen=True)
class Proposed:
    """A policy to be evaluated, and what identifies its trial."""

    direction: tuple[float, ...]
    policy: Policy
    structure_key: str
    start: bool
    local: bool = False


@dataclass
class Search:
    """A search with its fixed settings. A trial must be stored durably when `record` returns.

    parallel: number of trials that run at the same time, if `place`, the executor, has capacity for them. Trial n is
    proposed from the scores of the trials up to n - parallel, even if later ones are finished already. So neither
    timing nor the executor changes the trials.
    """

    space: Space
    budgets: Budgets
    price: Price
    place: Executor
    record: Callable[[Trial], None]
    seed: int
    propose: Proposal = by_expected_improvement
    objective: Objective = field(default_factory=BestScore)
    parallel: int = 1
    local: LocalSearch | None = None

    def run(self, done: Sequence[Trial], total: int) -> list[Trial]:
        """Search until there are `total` trials, or no new policy is left. Return all trials, including `done`. New
        ones are recorded in the order of their numbers.

        Raises: ImpossibleBudget when no policy meets the budgets.
        """
        trials: list[Trial] = list(done)
        begun: deque[tuple[Proposed, Waiting]] = deque()
        while True:
            while len(begun) < self.parallel and len(trials) + len(begun) < total:
                found = self._next([*trials, *(proposed for proposed, _ in begun)], total)
                if found is None:
                    total = len(trials) + len(begun)
                else:
                    begun.append((found, self.place.begin(found.policy)))
            if not begun:
                return trials
            trials.append(self._finish(len(trials), *begun.popleft()))

    def try_policy(self, number: int, like: Trial, policy: Policy) -> Trial:
        """Evaluate and record one policy, which is that of the trial `like` under other prices."""
        proposed = Proposed(like.direction, policy, self.space.sketch(policy).key, False, like.local)
        return self._finish(number, proposed, self.place.begin(policy))

    def _finish(self, number: int, proposed: Proposed, waiting: Waiting) -> Trial:
        """Wait for the score and record the trial."""
        costs = [float(cost) for cost in self.price([self.space.sketch(proposed.policy)])[0]]
        evaluated = waiting()
        score = evaluated.score
        labelled = {budget.label: cost for budget, cost in zip(self.budgets.items, costs, strict=True)}
        value = self.objective.value(score, self.budgets, costs)
        trial = Trial(
            number,
            proposed.direction,
            proposed.policy,
            proposed.structure_key,
            value,
            score.accuracy,
            score.agreement,
            labelled,
            "predicted",
            evaluated.seconds,
            proposed.start,
            self.objective.allows(score),
            proposed.local,
        )
        self.record(trial)
        return trial

    def rescored(self, trial: Trial, score: Score) -> Trial:
        """A copy of the trial with the score of another evaluation of its policy."""
        value = self.objective.value(score, self.budgets, list(trial.costs.values()))
        return dataclasses.replace(
            trial, score=value, accuracy=score.accuracy, agreement=score.agreement, allowed=self.objective.allows(score)
        )

    def finalists(self, trials: Sequence[Trial], count: int, evaluate: Evaluate) -> list[Trial]:
        """The best `count` trials, evaluated again by the more expensive `evaluate`; the best of them comes first."""
        return best([self.rescored(trial, evaluate(trial.policy)) for trial in best(trials)[:count]])

    def decoded(self, direction: Sequence[float]) -> Policy:
        """The largest policy along a direction within the targets of the objective."""
        aims = self.objective.aims(self.budgets, direction)
        return decode(self.space, direction[: len(self.space.dimensions)], aims, self.price)

    def decoded_again(self, trial: Trial) -> Policy | None:
        """The policy of a trial under the present prices and targets. None if no such policy meets the targets."""
        if trial.local:
            return refitted(self.space, trial.policy, self.objective.aims(self.budgets, trial.direction), self.price)
        try:
            return self.decoded(trial.direction)
        except ImpossibleBudget:
            return None

    def _next(self, before: Sequence[Trial | Proposed], total: int) -> Proposed | None:
        """The next policy to evaluate: a starting point, or else a proposal. None if no new policy is left.

        before: all trials with smaller numbers, finished or not.
        """
        seen = {trial.structure_key for trial in before}
        starts = [s + [START_DEPTH] * self.objective.extra for s in self.space.starts()]
        starts = starts[: max(1, total // START_SHARE)]
        for direction in starts[sum(trial.start for trial in before) :]:
            found = self._decode_to_propose(direction, start=True)
            if found.structure_key not in seen:
                return found
        first = total - total // LOCAL_SHARE
        if self.local is not None and len(before) >= first:
            step = self._local_step(self.local, before, first)
            if step is not None and step.structure_key not in seen:
                return step
        return self._proposed(before, seen)

    def _local_step(self, local: LocalSearch, before: Sequence[Trial | Proposed], first: int) -> Proposed | None:
        """The next step of the local search, from the best trial before its round. None if no step is possible.

        first: number of the first trial of the local search.
        """
        rounds, number = divmod(len(before) - first, len(STEPS))
        known = [
            [t for t in self._told(before[: first + r * len(STEPS)]) if isinstance(t, Trial)] for r in range(rounds + 1)
        ]
        bases = [best(trials)[0] if trials else None for trials in known]
        if (base := bases[-1]) is None:
            return None
        halved = sum(one is base for one in bases) - 1
        direction = self.objective.further(base.direction)
        aims = self.objective.aims(self.budgets, direction)
        policy = local.step(base.policy, number, halved=halved, budgets=aims)
        if policy is None:
            return None
        return Proposed(direction, policy, self.space.sketch(policy).key, start=False, local=True)

    def _told(self, before: Sequence[Trial | Proposed]) -> Sequence[Trial | Proposed]:
        """Those of the first trials whose scores the next proposal may use, however many of them are finished."""
        return before[: max(0, len(before) + 1 - self.parallel)]

    def _proposed(self, before: Sequence[Trial | Proposed], seen: set[str]) -> Proposed | None:
        """The best proposal whose structure is new. Its random seed depends on the trial's number, not on timing."""
        points = [trial.direction for trial in before]
        scores = [trial.score for trial in self._told(before) if isinstance(trial, Trial)]
        seed = self.seed * 100003 + len(before)
        dimensions = len(self.space.dimensions) + self.objective.extra
        proposals = self.propose(points, scores, dimensions, seed, self.space.canonical)
        for direction in proposals[:TRIES] + proposals[TRIES::STRIDE]:
            found = self._decode_to_propose(direction, start=False)
            if found.structure_key not in seen:
                return found
        return None

    def _decode_to_propose(self, direction: Sequence[float], start: bool) -> Proposed:
        policy = self.decoded(direction)
        return Proposed(tuple(direction), policy, self.space.sketch(policy).key, start)


def best(trials: Sequence[Trial]) -> list[Trial]:
    """Sort the trials: allowed ones first, then by falling score. Of equal trials the earlier comes first."""
    return sorted(trials, key=lambda trial: (not trial.allowed, -trial.score, trial.number))
