"""Measure the best trials of a search, and choose the network that the job delivers."""

import itertools
from dataclasses import dataclass

from models.errors import ImpossibleBudget
from models.networks.network import Network
from search.loop.search import best
from search.loop.trial import Score, Trial
from search.policy import Policy
from service.jobs.job_request import JobRequest
from service.jobs.journal import Journal
from service.pipeline.pricing import Pricing
from service.pipeline.ranked import Ranked
from service.pipeline.trials import Trials
from service.pipeline.verification import Verdict, Verifier

FINALISTS = 4
"""Number of best trials that are scored again in their final form, before the first one is measured."""
VERIFICATIONS = 6
"""Upper limit on the number of candidates that one job exports and measures."""
WELL_USED = 0.97
"""A share of the fullest budget, in (0, 1].

The fullest budget is the budget with the largest used share. If a candidate uses at least `WELL_USED` of it, the job
does not try a larger network.
"""


@dataclass(frozen=True)
class Candidate:
    """A trial with its network and the verdict of its measurement. name: prefix of its exported files."""

    name: str
    trial: Trial
    network: Network
    verdict: Verdict


class Candidates:
    """Makes candidates from trials, and measures them."""

    def __init__(
        self,
        request: JobRequest,
        ranked: Ranked,
        pricing: Pricing,
        verifier: Verifier,
        *,
        trials: Trials,
        journal: Journal,
    ) -> None:
        self._request, self._ranked, self._pricing = request, ranked, pricing
        self._verifier, self._trials, self._journal = verifier, trials, journal
        self._best: tuple[Policy, Network, Score] | None = None
        """The best final form so far. It is kept because it is measured first, so that it is not made twice."""

    def verify(self) -> Candidate:
        """Measure the best trials, and return the best candidate that meets all budgets.

        If a measurement exceeds a limit, the price model is corrected. The same direction is then decoded again, and
        the new network is measured.

        Raises: ImpossibleBudget when no candidate meets all budgets. The error says how near the job came.
        """
        self._journal.stage("verifying")
        met: list[Candidate] = []
        nearest, measured = float("inf"), set[int]()
        trial: Trial | None = self._finalists()[0]
        while trial is not None and len(measured) < VERIFICATIONS:
            measured.add(trial.number)
            candidate = self.candidate(trial, f"candidate {len(measured)} of at most {VERIFICATIONS}")
            nearest = min(nearest, candidate.verdict.fullest)
            self._journal.check()
            if candidate.verdict.met and candidate.trial.allowed:
                met.append(candidate)
                if candidate.verdict.fullest >= WELL_USED or self._request.objective == "latency":
                    break
            elif not candidate.verdict.met:
                self._pricing.aim_lower()
            trial = self._trials.decoded_again(trial, measured) or (None if met else self._next_best(measured))
        if not met:
            raise ImpossibleBudget(
                f"No candidate meets all budgets. {len(measured)} candidates were measured, and the nearest one used "
                f"{nearest:.3f} of its fullest budget; at most 1 is allowed. Raise the budget by that factor, or run "
                "the job on a quieter machine.",
                nearest=nearest,
            )
        return min(met, key=lambda c: best([x.trial for x in met]).index(c.trial))

    def candidate(self, trial: Trial, what: str | None = None) -> Candidate:
        """Make the network of the trial in its final form, measure it, and return both.

        what: names the candidate in progress notes; None: by its trial.
        """
        what = what or f"trial {trial.number}"
        self._journal.note(f"preparing {what}")
        network, score = self._final(trial.policy)
        name = f"trial{trial.number}"
        verdict = self._verifier.judge(name, network, what=what)
        return Candidate(name, self._trials.rescored(trial, score), network, verdict)

    def _finalists(self) -> list[Trial]:
        """Return the best few trials, ordered by the score of their final form."""
        if not self._request.recovery:
            return best(self._trials.rows)
        numbers = itertools.count(1)

        def final_score(policy: Policy) -> Score:
            self._journal.note(f"scoring finalist {next(numbers)} of at most {FINALISTS}")
            return self._final(policy)[1]

        return self._trials.finalists(FINALISTS, final_score)

    def _final(self, policy: Policy) -> tuple[Network, Score]:
        if self._best is not None and self._best[0] == policy:
            return self._best[1:]
        network = self._ranked.final(self._ranked.space.plan(policy), self._request.recovery)
        self._journal.check()
        score = self._ranked.score_of(network)
        if self._best is None or score.agreement > self._best[2].agreement:
            self._best = (policy, network, score)
        return network, score

    def _next_best(self, measured: set[int]) -> Trial | None:
        """Return the best trial that was not measured yet, decoded again under the corrected prices."""
        for trial in best(self._trials.rows):
            if trial.number not in measured and trial.allowed:
                return self._trials.decoded_again(trial, measured) or trial
        return None
