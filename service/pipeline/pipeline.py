"""The story of a job: load, describe, rank, price, search, verify, fine-tune, export, report.

The one file that knows all four rooms. Everything that is slow is either in the journal (trials), in the job's `work`
folder (statistics, exported files, fine-tuning epochs) or in the shared tables (latency), so an interrupted job goes on.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from latency.measuring.machine_lock import working
from models.errors import ImpossibleBudget, InvalidRequest
from models.networks.network import Network
from models.networks.torch_network import of_known_family
from models.throttle import paced
from models.training.masked_blocks import selectors_of
from models.training.train_gates import GateRecipe, train_gates
from search.loop.executor import Executor, LocalExecutor
from search.loop.objective import BestScore, LowestCost, Objective
from search.loop.search import Search, best
from search.loop.trial import Score, Trial
from search.methods import check_suits, method_named
from search.policy import Policy
from service.cluster.ray_cluster import Cluster, cluster_for
from service.core.data_folder import JobFiles
from service.core.settings import Settings
from service.jobs.job_request import JobRequest
from service.jobs.journal import JobResult, Journal
from service.pipeline.delivery import Delivery, deliver_files
from service.pipeline.dynamic_tokens import with_threshold
from service.pipeline.evaluation import Evaluation, better
from service.pipeline.precision import check_precisions, check_quantisable
from service.pipeline.pricing import Pricing
from service.pipeline.profiling import profile
from service.pipeline.training import check_training, train
from service.pipeline.verification import Verdict, Verifier

FINALISTS = 4
"""So many of the best trials are finished as they would be delivered, and compared as such."""
VERIFICATIONS = 6
"""At most so many candidates are exported and measured."""
WELL_USED = 0.97
"""A delivery that uses this share of its fullest budget is not corrected upwards any more."""
FINETUNED_VERIFICATIONS = 3
TIMED_IMAGES = 64
"""Of which mean and p95 are taken."""
FINETUNE_IMAGES, FINETUNE_BYTES = 50_000, 4 * 2**30
"""At most so many images, and no more than fit into so much memory."""


@dataclass(frozen=True)
class Candidate:
    """A trial with its network and what measuring it said. name: of its exported files."""

    name: str
    trial: Trial
    network: Network
    verdict: Verdict


def run(
    request: JobRequest, files: JobFiles, journal: Journal, deliver: int | None = None,
    allowed: Sequence[Path] | None = None,
) -> JobResult:  # fmt: skip
    """One job from its files to its artefacts.

    deliver: the number of a finished trial to deliver instead of the best. allowed: folders that a data set may name by
    path; None: those of the server's settings.

    Raises: VitfitError subclasses; ImpossibleBudget names the best reachable value or how near the job came.
    """
    for folder in (files.work, files.artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    job = Job(request, files, journal, Settings().allowed_roots if allowed is None else allowed)
    with paced(working):  # other jobs of this machine measure undisturbed
        return _stages(job, deliver)


def _stages(job: "Job", deliver: int | None) -> JobResult:
    job.describe()
    if deliver is None:
        job.find_cluster()
    job.rank()
    job.profile()
    if deliver is None:
        with job.on_cluster():
            job.search()
            chosen = job.verify()
    else:
        chosen = job.candidate(job.trial(deliver))
    return job.deliver(job.finetune(chosen))


class Job:
    """What the stages share. Each stage reads the journal before it works."""

    place: Executor
    """Where trials are evaluated."""

    def __init__(self, request: JobRequest, files: JobFiles, journal: Journal, allowed: Sequence[Path]) -> None:
        self.request, self.files, self.journal, self.allowed = request, files, journal, allowed
        self.trials = [Trial.from_json(row) for row in journal.trials()]
        self.started = time.monotonic()
        self.best_finished: tuple[Policy, Network, Score] | None = None
        self.cluster: Cluster | None = None

    def describe(self) -> None:
        self.journal.stage("validating")
        check_precisions(self.request)
        self.evaluation = Evaluation.open(self.request, self.files, self.allowed)
        check_suits(method_named(self.request.method), self.evaluation.network.structure)
        check_quantisable(self.request, self.evaluation.network.structure)
        check_training(self.request, self.evaluation)
        network = self.evaluation.network
        self.pricing = Pricing(self.request, network.structure)
        self.verifier = Verifier(network, self.pricing, self.files.work, self.request.seed)

    def find_cluster(self) -> None:
        """Where trials will run, if not here. Raises: ClusterUnavailable, ClusterUnfit, InvalidRequest."""
        self.cluster = cluster_for(self.request, Settings().ray, self.journal.check)

    @contextmanager
    def on_cluster(self) -> Iterator[None]:
        """Trials inside run there, if there is one."""
        if self.cluster is None:
            yield
            return
        device = "cuda" if self.request.trial_resources.gpus else "cpu"
        with self.cluster.place(self.evaluation.scorer(self.request.recovery, device)) as self.place:
            yield

    def rank(self) -> None:
        self.journal.stage("ranking")
        self._train_gates()
        self.evaluation.rank(self.request, self.files.work, self.journal.check)
        self.space = self.evaluation.policy_space()
        self.place = LocalExecutor(self.evaluation.scorer(self.request.recovery))

    def _train_gates(self) -> None:
        """What VTP ranks by; the network that was trained with them is then pruned in the original's place."""
        wanted = self.request.gates
        if method_named(self.request.method).training != "gates":
            return
        recipe = GateRecipe(
            wanted.epochs, wanted.l1, wanted.learning_rate, wanted.gate_learning_rate, wanted.batch, self.request.seed
        )
        data = self.evaluation.data.take("train", self._finetune_images(), self.request.seed)
        done, ends = len(self.trials), [time.monotonic()]

        def after_epoch(epoch: int, _loss: float) -> None:
            ends.append(time.monotonic())
            left = (wanted.epochs - epoch) * (ends[-1] - ends[0]) / (len(ends) - 1)
            best_score = max((trial.score for trial in self.trials), default=None)
            self.journal.progress(done, max(self.request.trials, done), best_score, left)
            self.journal.check()

        checkpoint = self.files.work / "gates.pt"
        self.evaluation.trained = train_gates(self.evaluation.network, data, recipe, checkpoint, after_epoch)

    def profile(self) -> None:
        self.journal.stage("profiling")
        profile(
            self.pricing, self.evaluation.network, self.verifier, self.files.tables, self.files.work,
            self.request.precisions,
        )  # fmt: skip
        self.journal.check()

    def search(self) -> None:
        """Trials on the predicted budgets. Raises: ImpossibleBudget before any is evaluated."""
        self.journal.stage("searching")
        costs = self._least_costs()
        if not self.pricing.aims.met(costs):
            raise self.pricing.impossible(costs)
        self.trials = self._search().run(self.trials, max(self.request.planned_trials, len(self.trials)))
        self._check_loss(best(self.trials)[0])

    def _search(self) -> Search:
        return Search(
            self.space, self.pricing.aims, self.pricing.price, self.place, self._record, self.request.seed,
            objective=self._objective(), parallel=self.request.parallel_trials,
        )  # fmt: skip

    def _objective(self) -> Objective:
        if self.request.max_loss is None:
            return BestScore()
        return LowestCost(self.evaluation.answers.dense_score(), self.request.max_loss, tuple(self._least_costs()))

    def _least_costs(self) -> list[float]:
        """Of the smallest network, per budget."""
        smallest = self.space.along([1.0] * len(self.space.dimensions), 2)
        return [float(cost) for cost in self.pricing.price([self.space.sketch(smallest)])[0]]

    def _check_loss(self, trial: Trial) -> None:
        """Raises: ImpossibleBudget when every trial gave up more than the request allows."""
        if not trial.allowed:
            raise ImpossibleBudget(
                f"None of {len(self.trials)} trials lost at most {self.request.max_loss:g}. "
                "Allow a larger max_loss, more trials, or a larger budget.",
                max_loss=self.request.max_loss,
            )

    def _record(self, trial: Trial) -> None:
        self.journal.record(trial.to_json())
        self.trials = [*self.trials, trial]
        done, total = len(self.trials), max(self.request.planned_trials, len(self.trials))
        left = (total - done) * (time.monotonic() - self.started) / max(done, 1)
        self.journal.progress(done, total, max(t.score for t in self.trials), left)
        self.journal.check()

    def verify(self) -> Candidate:
        """Measures the best trials; what is off is priced anew, decoded again along its direction, and measured again.

        Raises: ImpossibleBudget saying how near the job came, when no candidate is measured within the budgets.
        """
        self.journal.stage("verifying")
        met: list[Candidate] = []
        nearest, measured = float("inf"), set[int]()
        trial: Trial | None = self._finalists()[0]
        while trial is not None and len(measured) < VERIFICATIONS:
            measured.add(trial.number)
            candidate = self.candidate(trial)
            nearest = min(nearest, candidate.verdict.fullest)
            self.journal.check()
            if candidate.verdict.met and candidate.trial.allowed:
                met.append(candidate)
                if candidate.verdict.fullest >= WELL_USED or self.request.objective == "latency":
                    break
            elif not candidate.verdict.met:
                self.pricing.aim_lower()
            trial = self._decoded_again(trial, measured) or (None if met else self._next_best(measured))
        if not met:
            raise ImpossibleBudget(
                f"No candidate was measured within the budgets: the nearest took {nearest:.3f} of the fullest one after "
                f"{len(measured)} measurements. Raise the budget by that factor, or measure on a quieter machine.",
                nearest=nearest,
            )
        return min(met, key=lambda c: best([x.trial for x in met]).index(c.trial))

    def _finalists(self) -> list[Trial]:
        """The best few by what they score as they would be delivered."""
        if not self.request.recovery:
            return best(self.trials)
        return self._search().finalists(self.trials, FINALISTS, lambda policy: self._finished(policy)[1])

    def _finished(self, policy: Policy) -> tuple[Network, Score]:
        """The best so far is kept: it is what is measured first."""
        if self.best_finished is not None and self.best_finished[0] == policy:
            return self.best_finished[1:]
        network = self.evaluation.finished(self.space.plan(policy), self.request.recovery)
        self.journal.check()
        score = self.evaluation.score_of(network)
        if self.best_finished is None or score.agreement > self.best_finished[2].agreement:
            self.best_finished = (policy, network, score)
        return network, score

    def _next_best(self, measured: set[int]) -> Trial | None:
        """The best trial that was not measured, under corrected prices."""
        for trial in best(self.trials):
            if trial.number not in measured and trial.allowed:
                return self._decoded_again(trial, measured) or trial
        return None

    def _decoded_again(self, trial: Trial, measured: set[int]) -> Trial | None:
        """The same direction under corrected prices; None when nothing new comes out of it."""
        search = self._search()
        try:
            policy = search.decoded(trial.direction)
        except ImpossibleBudget:  # the aim has moved below what can be reached
            return None
        key = self.space.sketch(policy).key
        known = next((t for t in self.trials if t.structure_key == key), None)
        if known is not None:
            return None if known.number in measured else known
        return search.try_policy(len(self.trials), trial.direction, policy)

    def trial(self, number: int) -> Trial:
        """Raises: InvalidRequest when there is no such trial."""
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise InvalidRequest(f"There is no trial {number}; trials are 0 to {len(self.trials) - 1}.")

    def candidate(self, trial: Trial) -> Candidate:
        network, score = self._finished(trial.policy)
        name = f"trial{trial.number}"
        return Candidate(name, self._search().rescored(trial, score), network, self.verifier.judge(name, network))

    def finetune(self, chosen: Candidate) -> Candidate:
        """Trains the chosen network, and measures what came out; the network as it was, where training made it worse."""
        wanted = self.request.finetune
        if not wanted.epochs:
            return chosen
        self.journal.stage("finetuning")
        data = self.evaluation.data.take("train", self._finetune_images(), self.request.seed)
        checkpoint = self.files.work / f"finetune-trial{chosen.trial.number}.pt"
        network = train(
            self.request, self.evaluation, chosen.network, data, checkpoint, lambda *_: self.journal.check()
        )
        if method_named(self.request.method).training != "selectors" and self._made_worse(network, chosen.network):
            return chosen
        name, images = f"{chosen.name}-finetuned", self._images_to_time(network)
        if images is not None:
            network = with_threshold(of_known_family(network, "the dynamic form"), self.pricing, images)
        for _ in range(FINETUNED_VERIFICATIONS):  # this structure has met the budgets: only noise speaks against it
            verdict = self.verifier.judge(name, network, images)
            if verdict.met or not chosen.verdict.met:
                return Candidate(name, chosen.trial, network, verdict)
            if images is not None:
                known = of_known_family(network, "the dynamic form")
                network = with_threshold(known, self.pricing, images, above=known.threshold)
        raise ImpossibleBudget(
            f"After fine-tuning the file was measured {FINETUNED_VERIFICATIONS} times, last at {verdict.fullest:.3f} of the "
            "fullest budget. Measure on a quieter machine.",
            nearest=verdict.fullest,
        )

    def _made_worse(self, trained: Network, before: Network) -> bool:
        return better(self.evaluation.score_of(before), self.evaluation.score_of(trained))

    def _images_to_time(self, network: Network) -> Tensor | None:
        """What the dynamic form is priced and measured on, where there is one and a budget limits it."""
        limited = selectors_of(network.module) and any(budget.over_images for budget in self.request.budgets)
        return self.evaluation.calibration.images[:TIMED_IMAGES] if limited else None

    def _finetune_images(self) -> int:
        channels, height, width = self.evaluation.network.structure.image
        return min(FINETUNE_IMAGES, FINETUNE_BYTES // (4 * channels * height * width))

    def deliver(self, chosen: Candidate) -> JobResult:
        self.journal.stage("exporting")
        delivery = Delivery(
            self.request, self.evaluation, self.pricing, self.verifier, chosen.name, chosen.trial, chosen.network, chosen.verdict,
            tuple(self.trials),
        )  # fmt: skip
        return deliver_files(delivery, self.files, self.journal)
