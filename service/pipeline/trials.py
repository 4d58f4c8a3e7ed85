"""The trials of a job. The search tries policies of its space, and records each trial in the journal at once."""

import time
from collections.abc import Callable

from models.errors import ImpossibleBudget, InvalidRequest
from search.loop.executor import Executors
from search.loop.local_search import LocalSearch
from search.loop.objective import BestScore, LowestCost, Objective
from search.loop.search import Search, best
from search.loop.trial import Score, Trial
from search.methods import method_named
from search.policy import Policy
from service.jobs.job_request import JobRequest
from service.jobs.journal import Journal
from service.pipeline.pricing import Pricing
from service.pipeline.ranked import Ranked


class Trials:
    """The trials of a job. `rows` holds all finished trials, including those of earlier attempts."""

    def __init__(
        self,
        request: JobRequest,
        ranked: Ranked,
        pricing: Pricing,
        executors: Executors,
        *,
        journal: Journal,
        started: float,
    ) -> None:
        """Read the finished trials from the journal.

        executors: evaluate new trials. started: start of the job on the monotonic clock, in seconds.
        """
        self._request, self._ranked, self._pricing = request, ranked, pricing
        self._executors, self._journal, self._started = executors, journal, started
        local = LocalSearch(ranked.space, pricing.price, executors.part, self._tell)
        self._local = local if method_named(request.method).local_search else None
        self.rows = [Trial.from_json(row) for row in journal.trials()]

    def search(self) -> None:
        """Search for the best policies within the predicted budgets.

        Raises: ImpossibleBudget before the first trial when no policy meets the budgets, or after the last trial when
        every trial lost more than the request allows.
        """
        self._journal.stage("searching")
        costs = self.least_costs()
        if not self._pricing.aims.met(costs):
            raise self._pricing.impossible(costs)
        self.rows = self._search().run(self.rows, max(self._request.planned_trials, len(self.rows)))
        self._check_loss(best(self.rows)[0])

    def numbered(self, number: int) -> Trial:
        """Return the trial with this number. Raises: InvalidRequest when it does not exist."""
        for trial in self.rows:
            if trial.number == number:
                return trial
        raise InvalidRequest(f"The job has no trial {number}. Choose a number from 0 to {len(self.rows) - 1}.")

    def finalists(self, count: int, final_score: Callable[[Policy], Score]) -> list[Trial]:
        """Return the `count` best trials, ordered by the score of their final form."""
        return self._search().finalists(self.rows, count, final_score)

    def rescored(self, trial: Trial, score: Score) -> Trial:
        """Return the same trial with the score of its final form."""
        return self._search().rescored(trial, score)

    def decoded_again(self, trial: Trial, measured: set[int]) -> Trial | None:
        """Decode the trial's direction again under the corrected prices, and return the trial with the new policy.

        Return None if this gives only a structure that was measured already.

        measured: numbers of the trials that were measured.
        """
        search, space = self._search(), self._ranked.space
        policy = search.decoded_again(trial)
        if policy is None:
            return None
        key = space.sketch(policy).key
        known = next((t for t in self.rows if t.structure_key == key), None)
        if known is not None:
            return None if known.number in measured else known
        return search.try_policy(len(self.rows), trial, policy)

    def _search(self) -> Search:
        return Search(
            self._ranked.space,
            self._pricing.aims,
            self._pricing.price,
            self._executors.whole,
            self._record,
            self._request.seed,
            objective=self._objective(),
            parallel=self._request.parallel_trials,
            local=self._local,
        )

    def _tell(self, words: str) -> None:
        self._journal.note(words)
        self._journal.check()

    def _objective(self) -> Objective:
        if self._request.max_loss is None:
            return BestScore()
        return LowestCost(self._ranked.answers.dense_score(), self._request.max_loss, tuple(self.least_costs()))

    def least_costs(self) -> list[float]:
        """Return the costs of the smallest network, one for each budget."""
        space = self._ranked.space
        smallest = space.along([1.0] * len(space.dimensions), 2)
        return [float(cost) for cost in self._pricing.price([space.sketch(smallest)])[0]]

    def _check_loss(self, trial: Trial) -> None:
        """Check that the best trial is allowed. Raises: ImpossibleBudget when every trial lost more than max_loss."""
        if not trial.allowed:
            raise ImpossibleBudget(
                f"All {len(self.rows)} trials lost more than max_loss, which is {self._request.max_loss:g}. "
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
