"""The trials of a job: the search over its policy space, recorded in the journal as it goes."""

import time
from collections.abc import Callable

from models.errors import ImpossibleBudget, InvalidRequest
from search.loop.executor import Executor
from search.loop.objective import BestScore, LowestCost, Objective
from search.loop.search import Search, best
from search.loop.trial import Score, Trial
from search.policy import Policy
from service.jobs.job_request import JobRequest
from service.jobs.journal import Journal
from service.pipeline.pricing import Pricing
from service.pipeline.ranked import Ranked


class Trials:
    """`rows` are the trials so far, those of earlier attempts included. executor: where new ones are evaluated."""

    def __init__(
        self,
        request: JobRequest,
        ranked: Ranked,
        pricing: Pricing,
        executor: Executor,
        journal: Journal,
        started: float,
    ) -> None:
        """started: when the job began, on the monotonic clock, in seconds."""
        self._request, self._ranked, self._pricing = request, ranked, pricing
        self._executor, self._journal, self._started = executor, journal, started
        self.rows = [Trial.from_json(row) for row in journal.trials()]

    def search(self) -> None:
        """Evaluates trials on the predicted budgets. Raises: ImpossibleBudget before any is evaluated."""
        self._journal.stage("searching")
        costs = self._least_costs()
        if not self._pricing.aims.met(costs):
            raise self._pricing.impossible(costs)
        self.rows = self._search().run(self.rows, max(self._request.planned_trials, len(self.rows)))
        self._check_loss(best(self.rows)[0])

    def numbered(self, number: int) -> Trial:
        """Raises: InvalidRequest when there is no such trial."""
        for trial in self.rows:
            if trial.number == number:
                return trial
        raise InvalidRequest(f"There is no trial {number}; trials are 0 to {len(self.rows) - 1}.")

    def finalists(self, count: int, final_score: Callable[[Policy], Score]) -> list[Trial]:
        """The `count` best trials, ordered by what they score in their final form."""
        return self._search().finalists(self.rows, count, final_score)

    def rescored(self, trial: Trial, score: Score) -> Trial:
        """The same trial with the score of its final form."""
        return self._search().rescored(trial, score)

    def decoded_again(self, trial: Trial, measured: set[int]) -> Trial | None:
        """The trial's direction under corrected prices; None when that gives nothing new.

        measured: numbers of the trials that were measured.
        """
        search, space = self._search(), self._ranked.space
        try:
            policy = search.decoded(trial.direction)
        except ImpossibleBudget:  # the target has moved below what can be reached
            return None
        key = space.sketch(policy).key
        known = next((t for t in self.rows if t.structure_key == key), None)
        if known is not None:
            return None if known.number in measured else known
        return search.try_policy(len(self.rows), trial.direction, policy)

    def _search(self) -> Search:
        return Search(
            self._ranked.space,
            self._pricing.aims,
            self._pricing.price,
            self._executor,
            self._record,
            self._request.seed,
            objective=self._objective(),
            parallel=self._request.parallel_trials,
        )

    def _objective(self) -> Objective:
        if self._request.max_loss is None:
            return BestScore()
        return LowestCost(self._ranked.answers.dense_score(), self._request.max_loss, tuple(self._least_costs()))

    def _least_costs(self) -> list[float]:
        """The costs of the smallest network, one for each budget."""
        space = self._ranked.space
        smallest = space.along([1.0] * len(space.dimensions), 2)
        return [float(cost) for cost in self._pricing.price([space.sketch(smallest)])[0]]

    def _check_loss(self, trial: Trial) -> None:
        """Raises: ImpossibleBudget when every trial gave up more than the request allows."""
        if not trial.allowed:
            raise ImpossibleBudget(
                f"None of {len(self.rows)} trials lost at most {self._request.max_loss:g}. "
                "Allow a larger max_loss, more trials, or a larger budget.",
                max_loss=self._request.max_loss,
            )

    def _record(self, trial: Trial) -> None:
        self._journal.record(trial.to_json())
        self.rows = [*self.rows, trial]
        done, total = len(self.rows), max(self._request.planned_trials, len(self.rows))
        left = (total - done) * (time.monotonic() - self._started) / max(done, 1)
        self._journal.progress(done, total, max(t.score for t in self.rows), left)
        self._journal.check()
