"""The results of the earlier stages of a job, which the last stage needs to deliver the network."""

from dataclasses import dataclass

from vitfit.report import Guarantee

from models.networks.network import Network
from models.structure import Plan
from search.loop.trial import Trial
from service.jobs.job_request import JobRequest
from service.pipeline.evaluation import Evaluation
from service.pipeline.pricing import Pricing
from service.pipeline.ranked import Ranked
from service.pipeline.verification import VERIFY, Evidence, Verdict, Verifier


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The network that a job delivers, and all results that its files and its report need.

    name: prefix of the network's files in the job's `work` folder. trials: all trials of the job.
    """

    request: JobRequest
    ranked: Ranked
    pricing: Pricing
    verifier: Verifier
    name: str
    trial: Trial
    network: Network
    verdict: Verdict
    trials: tuple[Trial, ...]

    @property
    def evaluation(self) -> Evaluation:
        return self.ranked.evaluation

    @property
    def plan(self) -> Plan:
        """The plan with which the original was pruned to the delivered network."""
        assert self.network.plan is not None
        return self.network.plan

    @property
    def guarantee(self) -> Guarantee:
        """What the result guarantees about the budgets. `vitfit.report.Guarantee` defines the values."""
        if not self.verdict.met:
            return "none"
        places = [place for place in self.pricing.places if place is not None]
        if not places:
            return "measured" if any(key[0] == "memory" for key in self.pricing.size_keys) else "counted"
        return "measured" if all(p in self.pricing.measured_places for p in places) else "predicted"

    def evidence(self) -> Evidence:
        """Return the measurement that the report shows.

        This is the first measurement of the verification. If the verification has measured no latency, the file is
        measured now.
        """
        if self.verdict.evidence:
            return self.verdict.evidence[0]
        networks = [(self.name, self.network)]
        return self.verifier.measure(networks, self.pricing.report_place, VERIFY)[0]
