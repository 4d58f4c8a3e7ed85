"""The parts that all rows share: the model, its data, the latency table, and the scoring of a network."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from latency.measuring.sampling import Interval
from latency.prediction.table import Sample
from models.data.dataset import Batch
from models.evaluation.metrics import correct
from models.networks.network import Network
from models.structure import Plan, Precision
from search.budgets import Budgets
from search.loop.executor import LocalExecutor
from search.loop.local_search import LocalSearch
from search.loop.search import Search
from search.loop.searcher import Proposal, by_expected_improvement
from search.loop.trial import Trial
from search.methods import Basis, method_named
from search.spaces.space import Space
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.pipeline.candidates import FINALISTS
from service.pipeline.evaluation import Evaluation
from service.pipeline.pricing import Pricing
from service.pipeline.profiling import profile
from service.pipeline.ranked import Ranked, rank_network
from service.pipeline.verification import Verifier

ASSESSED, MOST = 500, 20_000
"""Number of test images in one batch, and upper limit on training images."""


@dataclass(frozen=True)
class Case:
    """One budget and one seed of one model."""

    model: Path
    data: Path
    keep: float
    seed: int
    work: Path
    """Folder that all rows share. It holds the prepared inputs, the latency table, and the statistics for each seed and
    criterion."""
    precisions: tuple[Precision, ...] = ("fp32",)

    def request(self, method: str = "joint", criterion: str | None = None, basis: Basis | None = None) -> JobRequest:
        return JobRequest.model_validate(
            {
                "model": "model",
                "dataset": "data",
                "method": method,
                "criterion": criterion,
                "basis": basis,
                "seed": self.seed,
                "precisions": self.precisions,
                "gates": {"epochs": int(method == "vtp")},
                "finetune": {"epochs": int(method == "spvit")},
                "budgets": [{"metric": "latency_keep", "limit": self.keep, "device": "cpu", "setting": {"threads": 1}}],
            }
        )

    def files(self) -> JobFiles:
        model, data = self.work / "model", self.work / "data"
        if not model.exists():
            model.mkdir(parents=True)
            for name in ("model.json", "weights.safetensors"):
                shutil.copyfile(self.model / name, model / name)
        if not data.exists():
            data.mkdir(parents=True)
            shutil.copyfile(self.data, data / "data.npz")
            description = {"source": "npz", "path": None, "filename": self.data.name}
            (data / "dataset.json").write_text(json.dumps(description))
        work = self.work / f"seed{self.seed}"
        work.mkdir(exist_ok=True)
        return JobFiles(model, data, self.work / "artifacts", work, self.work / "tables")


class Bench:
    """An opened case: everything that a row needs."""

    def __init__(
        self,
        case: Case,
        method: str = "joint",
        criterion: str | None = None,
        *,
        aimed: bool = False,
        basis: Basis | None = None,
    ) -> None:
        """Open the case.

        aimed: whether searches decode to the targets of the budgets, as a job does. A target is lower than its budget
        by a safety margin, because the measured latency of a job's result must meet the budget.
        """
        self.case, self.request, files, self._aimed = case, case.request(method, criterion, basis), case.files(), aimed
        self.evaluation = Evaluation.open(self.request, files)
        self.original = self.evaluation.network
        self.pricing = Pricing(self.request, self.original.structure)
        profile(
            self.pricing,
            self.original,
            Verifier(self.original, self.pricing, files.work, 0),
            files.tables,
            work=files.work,
            precisions=case.precisions,
        )
        self._work = files.work

    @cached_property
    def ranked(self) -> Ranked:
        """Statistics and ranking of the original.

        `trained.gates` replaces them for VTP, which ranks by trained gates.
        """
        return rank_network(self.evaluation, self.request, self._work)

    @cached_property
    def train(self) -> Batch:
        return self.evaluation.data.take("train", MOST, 0)

    def fits(self, network: Network) -> bool:
        """Return whether the predicted latency of the network is within the budget."""
        return self.predicted_keep(network) <= self.case.keep

    def predicted_keep(self, network: Network) -> float:
        return float(self.pricing.price([network.structure])[0, 0])

    @property
    def budgets(self) -> Budgets:
        return self.pricing.aims if self._aimed else self.pricing.budgets

    def learn(self, network: Network, measured: Interval, original_ms: float) -> None:
        """Correct the latency table with a measurement. All later prices use the corrected table."""
        (place,) = self.pricing.measured_places
        self.pricing.correct(place, [Sample(network.structure, measured)], original_ms)

    def search(
        self, space: Space, recovery: bool, trials: int, propose: Proposal = by_expected_improvement
    ) -> tuple[Network, list[Trial]]:
        """Run `trials` trials on the selection split.

        With vitfit's own proposals, some of them are steps of the local search, as in a job. Return the best network,
        made as a job makes it, and all trials.
        """
        search, plan = self.searching(space, recovery, propose), space.plan
        found = search.run([], trials)
        last = search.finalists(found, FINALISTS, lambda p: self.ranked.score_of(self.ranked.final(plan(p), recovery)))
        return self.finished(plan(last[0].policy), recovery), found

    def searching(self, space: Space, recovery: bool, propose: Proposal = by_expected_improvement) -> Search:
        scorer, price = dataclasses.replace(self.ranked.scorer(recovery), space=space), self.pricing.price
        local = None
        if propose is by_expected_improvement and method_named(self.request.method).local_search:
            local = LocalSearch(space, price, LocalExecutor(scorer.on_a_part()))
        return Search(
            space, self.budgets, price, LocalExecutor(scorer), lambda _: None, self.case.seed, propose, local=local
        )

    def finished(self, plan: Plan, recovery: bool) -> Network:
        """Return the network of a plan, made as a job makes the network that it delivers."""
        return self.ranked.final(plan, recovery)

    def test(self, network: Network) -> tuple[int, int]:
        """Return the number of correct answers on the test split, and the number of test images."""
        right = count = 0
        for chunk in self.evaluation.data.batches("test", ASSESSED):
            assert chunk.labels is not None
            with torch.inference_mode():
                right += correct(network.outputs(chunk.images), chunk.labels)
            count += len(chunk.images)
        return right, count
