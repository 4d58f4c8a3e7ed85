"""A job's network and images, and what is computed from them once: dense outputs, statistics, ranking.

Evaluating a policy is a function of these and the policy alone, so it can run in any process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from models.data import Batch, Dataset, noise_data, open_data
from models.evaluate import agreement, correct, feature_agreement, same_answer
from models.open import open_model
from models.plan import Plan
from models.selector_plan import without_selectors
from models.statistics import Statistics, from_tensors, to_tensors
from models.torch_network import TorchNetwork
from search.criteria import CRITERIA, rank
from search.methods import criterion_of, method_named
from search.policy import Policy
from search.spaces import space_of
from search.spaces.space import Space
from search.trial import Score
from service.journal import JobFiles
from service.request import JobRequest

CALIBRATION, SELECTION = 512, 512
"""At most so many images: more costs time and changes little. The report sees the whole test split."""
NOISE = 128
"""Images of noise in all: half for statistics, a quarter to select, a quarter to test."""


@dataclass
class Evaluation:
    network: TorchNetwork
    data: Dataset
    calibration: Batch
    selection: Batch
    seed: int
    statistics: Statistics | None = None
    space: Space | None = None
    dense: Tensor | None = None

    @classmethod
    def open(cls, request: JobRequest, files: JobFiles, allowed: Sequence[Path] = ()) -> "Evaluation":
        """Loads model and data; refuses what cannot be handled. Raises: the errors of open_model and open_data."""
        network = open_model(files.model)
        if files.dataset is None:
            data = noise_data(network.preprocessing, NOISE, request.seed)
        else:
            data = open_data(
                files.dataset,
                network.preprocessing,
                network.structure.classes or None,
                allowed,
                class_names=network.class_names,
            )
        calibration = data.take("calibration", CALIBRATION, request.seed)
        return cls(network, data, calibration, data.take("selection", SELECTION, request.seed), request.seed)

    def rank(self, request: JobRequest, work: Path) -> None:
        """Statistics, ranking and dense outputs, once; statistics are kept for a resumed job."""
        method = method_named(request.method)
        criterion = criterion_of(method, request.criterion)
        stored = work / f"statistics-{criterion}.safetensors"
        if stored.exists():
            self.statistics = from_tensors(load_file(stored))
        else:
            self.statistics = self.network.statistics(self.calibration.images, CRITERIA[criterion].needs)
            beside = stored.with_suffix(".part")
            save_file(to_tensors(self.statistics), beside)
            beside.replace(stored)
        ranking = rank(criterion, self.network.weights(), self.statistics)
        self.space = space_of(method, self.network.structure, ranking)
        self.dense = self.network.outputs(self.selection.images)

    def policy_space(self) -> Space:
        """Raises: AssertionError before `rank`."""
        assert self.space is not None
        return self.space

    def prune(self, plan: Plan, recovery: bool) -> TorchNetwork:
        return self.network.pruned(plan, self.statistics if recovery else None)

    def score(self, policy: Policy, recovery: bool) -> Score:
        """Prunes physically, recovers, and runs the selection images."""
        plan = self.policy_space().plan(policy)
        return self.score_of(self.prune(without_selectors(plan), recovery))

    def score_of(self, network: TorchNetwork) -> Score:
        assert self.dense is not None
        outputs = network.outputs(self.selection.images)
        right = self.correct(outputs, self.selection.labels)
        same = same_answer(self.dense, outputs, self.classes)
        return Score(self.agreement(self.dense, outputs), None if right is None else right / len(outputs), same)

    @property
    def classes(self) -> int:
        """0: the network has no classifier."""
        return self.network.structure.classes

    def agreement(self, dense: Tensor, pruned: Tensor) -> float:
        """0 is perfect. By KL of the classes, or by distance of the features."""
        return agreement(dense, pruned) if self.classes else feature_agreement(dense, pruned)

    def correct(self, outputs: Tensor, labels: Tensor | None) -> int | None:
        """Images that get their label; None without labels or without classes."""
        return None if labels is None or not self.classes else correct(outputs, labels)

    def dense_score(self) -> Score:
        """What the original gets, from the outputs that are there already."""
        assert self.dense is not None
        right = self.correct(self.dense, self.selection.labels)
        return Score(0.0, None if right is None else right / len(self.dense))
