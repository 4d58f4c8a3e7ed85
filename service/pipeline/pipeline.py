"""Run a job: the stages that service/jobs/journal.py lists.

Every slow result is stored, so that an interrupted job can continue. The journal holds the trials. The job's `work`
folder holds statistics, exported files and the progress of trainings. All jobs share a folder with the latency tables.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from vitfit.report import JobResult

from latency.measuring.machine_lock import working
from models.data.dataset import Batch
from models.errors import ImpossibleBudget
from models.networks.network import Network
from models.networks.torch_network import of_known_family
from models.throttle import paced
from models.training.masked_blocks import selectors_of
from models.training.train_gates import GateRecipe, train_gates
from search.loop.executor import Executors, LocalExecutor
from search.loop.trial import Trial
from search.methods import method_named
from service.cluster.ray_cluster import Cluster, cluster_for
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.jobs.journal import Journal
from service.pipeline.candidates import Candidate, Candidates
from service.pipeline.check_job import check_job
from service.pipeline.deliver_files import deliver_files
from service.pipeline.delivery import Delivery
from service.pipeline.dynamic_tokens import with_threshold
from service.pipeline.evaluation import Evaluation
from service.pipeline.precision import check_precisions
from service.pipeline.pricing import Pricing
from service.pipeline.profiling import measure_again, profile
from service.pipeline.ranked import Ranked, better, rank_network
from service.pipeline.training import heal, train
from service.pipeline.trials import Trials
from service.pipeline.verification import Verifier

TRAINED_VERIFICATIONS = 3
"""Upper limit on the number of times that a healed or fine-tuned network is measured."""
TIMED_IMAGES = 64
"""Number of images for the mean and the 95th percentile of the latency over images."""
TRAINING_IMAGES, TRAINING_BYTES = 50_000, 4 * 2**30
"""Upper limits for a training: the number of its images, and the memory in bytes that they take."""


def run(
    request: JobRequest,
    files: JobFiles,
    journal: Journal,
    deliver: int | None = None,
    *,
    allowed: Sequence[Path] = (),
    cluster: str | None = None,
) -> JobResult:
    """Run one job, and write its artifacts.

    deliver: number of the finished trial to deliver; None: the job searches, and delivers the best trial. allowed:
    folders below which a data set may be named by its path. cluster: address of the Ray cluster that runs the trials;
    None: this process runs them.

    Raises: a subclass of VitfitError. ImpossibleBudget names the best reachable value, or says how near the job came.
    """
    for folder in (files.work, files.artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    with paced(working):  # waits while another process on this machine holds the machine lock to measure
        return Job(request, files, journal, time.monotonic()).run(deliver, allowed, cluster)


@dataclass(frozen=True)
class Job:
    """The arguments of all stages. started: start of the job on the monotonic clock, in seconds."""

    request: JobRequest
    files: JobFiles
    journal: Journal
    started: float

    def run(self, deliver: int | None, allowed: Sequence[Path], address: str | None) -> JobResult:
        """Run all stages in their order."""
        evaluation = self.open(allowed)
        pricing = Pricing(self.request, evaluation.network.structure)
        tell = self.journal.note
        verifier = Verifier(evaluation.network, pricing, self.files.work, self.request.seed, tell=tell)
        cluster = None if deliver is not None else cluster_for(self.request, address, self.journal.check)
        ranked = self.rank(evaluation)
        self.profile(evaluation, pricing, verifier)
        with self.executors(ranked, cluster) as executors:
            trials = Trials(self.request, ranked, pricing, executors, journal=self.journal, started=self.started)
            candidates = Candidates(self.request, ranked, pricing, verifier, trials=trials, journal=self.journal)
            if deliver is None:
                self.look_again(evaluation.network, pricing, verifier, trials)
                trials.search()
                chosen = candidates.verify()
            else:
                chosen = candidates.candidate(trials.numbered(deliver))
        chosen = self.heal(chosen, ranked, pricing, verifier)
        chosen = self.finetune(chosen, ranked, pricing, verifier)
        return self.deliver(chosen, ranked, pricing, verifier, trials=trials.rows)

    def open(self, allowed: Sequence[Path]) -> Evaluation:
        """Load the model and the data, and check that the job is possible. Raises: a subclass of VitfitError."""
        self.journal.stage("validating")
        check_precisions(self.request)
        evaluation = Evaluation.open(self.request, self.files, allowed)
        check_job(self.request, evaluation)
        return evaluation

    def rank(self, evaluation: Evaluation) -> Ranked:
        self.journal.stage("ranking")
        trained = self._train_gates(evaluation) if method_named(self.request.method).training == "gates" else None
        known = set(self.files.work.iterdir())
        ranked = rank_network(evaluation, self.request, self.files.work, trained, check=self.journal.check)
        if not known.issuperset(self.files.work.iterdir()):
            self.journal.saved()
        return ranked

    def _train_gates(self, evaluation: Evaluation) -> Network:
        """Train gates in the original, and return it. VTP ranks by these gates, and prunes this trained original."""
        wanted = self.request.gates
        recipe = GateRecipe(
            wanted.epochs, wanted.l1, wanted.learning_rate, wanted.gate_learning_rate, wanted.batch, self.request.seed
        )
        data = self._training_images(evaluation)
        trials, ends = [Trial.from_json(row) for row in self.journal.trials()], [time.monotonic()]

        def after_epoch(epoch: int, _loss: float) -> None:
            ends.append(time.monotonic())
            left = (wanted.epochs - epoch) * (ends[-1] - ends[0]) / (len(ends) - 1)
            best_score = max((trial.score for trial in trials), default=None)
            self.journal.progress(len(trials), max(self.request.trials, len(trials)), best_score, left)
            self._after_epoch()

        return train_gates(evaluation.network, data, recipe, self.files.work / "gates.pt", after_epoch=after_epoch)

    def profile(self, evaluation: Evaluation, pricing: Pricing, verifier: Verifier) -> None:
        self.journal.stage("profiling")
        profile(
            pricing,
            evaluation.network,
            verifier,
            self.files.tables,
            work=self.files.work,
            precisions=self.request.precisions,
            saved=self.journal.saved,
        )
        self.journal.check()

    def look_again(self, network: Network, pricing: Pricing, verifier: Verifier, trials: Trials) -> None:
        """Measure again where a budget seems impossible, because other programs may have slowed a measurement."""
        measure_again(
            pricing,
            network,
            verifier,
            self.files.tables,
            work=self.files.work,
            least_costs=trials.least_costs,
            precisions=self.request.precisions,
        )
        self.journal.check()

    def _after_epoch(self, *_: float) -> None:
        """Report that a checkpoint is stored. Raises: Canceled; Fenced."""
        self.journal.saved()
        self.journal.check()

    @contextmanager
    def executors(self, ranked: Ranked, cluster: Cluster | None) -> Iterator[Executors]:
        """Provide the executors of the trials: on the cluster if there is one, and otherwise in this process."""
        device = "cuda" if cluster is not None and self.request.trial_resources.gpus else "cpu"
        scorer = ranked.scorer(self.request.recovery, device)
        part = scorer.on_a_part()
        if cluster is None:
            yield Executors(LocalExecutor(scorer), LocalExecutor(part))
            return
        with cluster.place(scorer) as whole, cluster.place(part) as beside:
            yield Executors(whole, beside)

    def heal(self, chosen: Candidate, ranked: Ranked, pricing: Pricing, verifier: Verifier) -> Candidate:
        """Heal the chosen network and measure the result. If it agrees less with the original, return it unhealed.

        Raises: ImpossibleBudget when no measurement of the healed network meets all budgets.
        """
        if not self.request.heal.steps:
            return chosen
        self.journal.stage("healing")
        checkpoint = self.files.work / f"heal-trial{chosen.trial.number}.pt"
        network = heal(
            self.request,
            ranked,
            chosen.network,
            self._training_images(ranked.evaluation),
            checkpoint=checkpoint,
            after_epoch=self._after_epoch,
        )
        if not better(ranked.score_of(network), ranked.score_of(chosen.network)):
            return chosen
        return self._measured(f"{chosen.name}-healed", chosen, network, verifier=verifier, pricing=pricing)

    def finetune(self, chosen: Candidate, ranked: Ranked, pricing: Pricing, verifier: Verifier) -> Candidate:
        """Fine-tune the chosen network and measure the result.

        If fine-tuning makes the network worse, return the network from before it. A network with selectors is never
        returned untrained.

        Raises: ImpossibleBudget when no measurement of the fine-tuned network meets all budgets.
        """
        wanted, evaluation = self.request.finetune, ranked.evaluation
        if not wanted.epochs:
            return chosen
        self.journal.stage("finetuning")
        data = self._training_images(evaluation)
        checkpoint = self.files.work / f"finetune-trial{chosen.trial.number}.pt"
        network = train(
            self.request,
            ranked,
            chosen.network,
            data,
            checkpoint=checkpoint,
            after_epoch=self._after_epoch,
        )
        worse = better(ranked.score_of(chosen.network), ranked.score_of(network))
        if worse and method_named(self.request.method).training != "selectors":
            return chosen
        name, images = f"{chosen.name}-finetuned", self._images_to_time(network, evaluation)
        if images is not None:
            network = with_threshold(of_known_family(network, "the dynamic form"), pricing, images)
        return self._measured(name, chosen, network, verifier=verifier, pricing=pricing, images=images)

    def _measured(
        self,
        name: str,
        chosen: Candidate,
        network: Network,
        *,
        verifier: Verifier,
        pricing: Pricing,
        images: Tensor | None = None,
    ) -> Candidate:
        """Measure a network that was trained, and return it as a candidate.

        The same structure has already met the budgets, so a measurement above a limit is noise and is repeated.
        images: the images over which a dynamic form is measured.

        Raises: ImpossibleBudget when no measurement meets all budgets.
        """
        for _ in range(TRAINED_VERIFICATIONS):
            verdict = verifier.judge(name, network, images)
            if verdict.met or not chosen.verdict.met:
                return Candidate(name, chosen.trial, network, verdict)
            if images is not None:
                known = of_known_family(network, "the dynamic form")
                network = with_threshold(known, pricing, images, above=known.threshold)
        raise ImpossibleBudget(
            f"The trained file was measured {TRAINED_VERIFICATIONS} times, and never met all budgets. The last "
            f"measurement used {verdict.fullest:.3f} of the fullest budget; at most 1 is allowed. Run the job on a "
            "quieter machine.",
            nearest=verdict.fullest,
        )

    def _images_to_time(self, network: Network, evaluation: Evaluation) -> Tensor | None:
        """Return the images on which the dynamic form is priced and measured.

        Return None if the network has no dynamic form, or if no budget limits the latency over images.
        """
        limited = selectors_of(network.module) and any(budget.over_images for budget in self.request.budgets)
        return evaluation.calibration.images[:TIMED_IMAGES] if limited else None

    def _training_images(self, evaluation: Evaluation) -> Batch:
        channels, height, width = evaluation.network.structure.image
        count = min(TRAINING_IMAGES, TRAINING_BYTES // (4 * channels * height * width))
        return evaluation.data.take("train", count, self.request.seed)

    def deliver(
        self, chosen: Candidate, ranked: Ranked, pricing: Pricing, verifier: Verifier, *, trials: Sequence[Trial]
    ) -> JobResult:
        self.journal.stage("exporting")
        delivery = Delivery(
            request=self.request,
            ranked=ranked,
            pricing=pricing,
            verifier=verifier,
            name=chosen.name,
            trial=chosen.trial,
            network=chosen.network,
            verdict=chosen.verdict,
            trials=tuple(trials),
        )
        return deliver_files(delivery, self.files, self.journal)
