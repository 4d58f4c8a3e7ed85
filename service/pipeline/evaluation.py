"""A job's network and images, and what is computed from them once: dense outputs, statistics, ranking.

Evaluating a policy is a function of these and the policy alone (service/pipeline/scoring.py), so it can run in any process.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from models.data.dataset import Batch, Dataset
from models.data.noise import noise_data
from models.data.open_dataset import open_data
from models.errors import InvalidRequest
from models.evaluation.sensitivity import quantisation_order
from models.loading.load_model import open_model
from models.loading.timm_target import check_same_design, target_structure
from models.networks.network import Network
from models.statistics.statistics import Statistics, from_tensors, to_tensors
from models.structure import Layer, Plan, Structure
from search.criteria import CRITERIA, rank
from search.loop.trial import Score
from search.methods import criterion_of, method_for, method_named
from search.ranking import Ranking
from search.spaces import space_of
from search.spaces.fp16 import HalfSpace
from search.spaces.precision import LEFT_OUT, PrecisionSpace
from search.spaces.space import Space
from search.spaces.target import TargetSpace
from search.spaces.target_shape import check_reachable, regular_plan
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.pipeline.precision import priced_in_one_precision, quantiser_of
from service.pipeline.scoring import Answers, Scorer, difference, right_answers

CALIBRATION, SELECTION = 512, 512
"""At most so many images: more costs time and changes little. The report sees the whole test split."""
NOISE = 128
"""Images of noise in all: half for statistics, a quarter to select, a quarter to test."""


@dataclass
class Evaluation:
    """`network` is the original, to which everything is compared; `source` is what is pruned."""

    network: Network
    data: Dataset
    calibration: Batch
    selection: Batch
    seed: int
    statistics: Statistics | None = None
    space: Space | None = None
    dense: Tensor | None = None
    trained: Network | None = None
    """The original trained on before it is pruned, where the method does so (VTP's gates)."""

    @classmethod
    def open(cls, request: JobRequest, files: JobFiles, allowed: Sequence[Path] = ()) -> "Evaluation":
        """Loads model and data; refuses what cannot be handled. Raises: the errors of open_model and open_data, and of
        check_gates."""
        network = open_model(files.model).with_quantiser(quantiser_of(request))
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
        check_gates(request, data, network.structure.classes)
        calibration = data.take("calibration", CALIBRATION, request.seed)
        return cls(network, data, calibration, data.take("selection", SELECTION, request.seed), request.seed)

    def rank(self, request: JobRequest, work: Path, check: Callable[[], None] = lambda: None) -> None:
        """Statistics, ranking and dense outputs, once; what is slow is kept for a resumed job. check may raise to stop."""
        method = method_for(request.method, request.keep_spatial)
        criterion = criterion_of(method, request.criterion)
        stored = work / f"statistics-{criterion}.safetensors"
        if stored.exists():
            self.statistics = from_tensors(load_file(stored))
        else:
            self.statistics = self.source.statistics(
                self.calibration.images, CRITERIA[criterion].needs, self.calibration.labels
            )
            beside = stored.with_suffix(".part")
            save_file(to_tensors(self.statistics), beside)
            beside.replace(stored)
        ranking = rank(criterion, self.source.weights(), self.statistics)
        self.space = space_of(method, self.network.structure, ranking, request.space)
        if request.target is not None:
            self.space = target_space(self.network, ranking, request.target)
        if "int8" in request.precisions:
            order = self._quantisation_order(work, check)
            left_out = 0.0 if priced_in_one_precision(request) else LEFT_OUT
            self.space = PrecisionSpace(self.space, order, request.precisions, left_out)
        if "fp16" in request.precisions:
            self.space = HalfSpace(self.space)
        self.dense = self.network.outputs(self.selection.images)

    def _quantisation_order(self, work: Path, check: Callable[[], None]) -> list[tuple[int, Layer]]:
        stored = work / "quantisation-order.json"
        if stored.exists():
            return [(place, layer) for place, layer in json.loads(stored.read_text())]
        order = quantisation_order(self.source, self.calibration.images, check)
        beside = stored.with_suffix(".part")
        beside.write_text(json.dumps(order))
        beside.replace(stored)
        return order

    @property
    def source(self) -> Network:
        """What statistics, ranking and pruning read."""
        return self.network if self.trained is None else self.trained

    def policy_space(self) -> Space:
        """Raises: AssertionError before `rank`."""
        assert self.space is not None
        return self.space

    def prune(self, plan: Plan, recovery: bool) -> Network:
        return self.source.pruned(plan, self.statistics if recovery else None)

    def finished(self, plan: Plan, recovery: bool) -> Network:
        """As it is delivered: with recovery, each layer is fitted once more to what really reaches it, if that is better."""
        network = self.prune(plan, recovery)
        if not recovery or not network.recovers_in_sequence:
            return network
        again = network.recovered_in_sequence(self.source, self.calibration.images)
        return again if better(self.score_of(again), self.score_of(network)) else network

    def scorer(self, recovery: bool, device: str = "cpu") -> Scorer:
        """Scores policies, here or elsewhere. Raises: AssertionError before `rank`."""
        return Scorer(self.source, self.statistics if recovery else None, self.policy_space(), self.answers, device)

    def score_of(self, network: Network) -> Score:
        return self.answers.score(network)

    @property
    def answers(self) -> Answers:
        """Raises: AssertionError before `rank`."""
        assert self.dense is not None
        return Answers(self.selection.images, self.selection.labels, self.dense, self.classes)

    @property
    def classes(self) -> int:
        """0: the network has no classifier."""
        return self.network.structure.classes

    def agreement(self, dense: Tensor, pruned: Tensor) -> float:
        return difference(dense, pruned, self.classes)

    def correct(self, outputs: Tensor, labels: Tensor | None) -> int | None:
        return right_answers(outputs, labels, self.classes)


def reachable_target(network: Network, target: str) -> Structure:
    """The shape of a job's target. Raises: InvalidRequest with each reason why it cannot be reached by pruning."""
    shape = target_structure(network, target)
    check_reachable(network.structure, shape)
    check_same_design(network, target)
    return shape


def target_space(network: Network, ranking: Ranking, target: str) -> TargetSpace:
    """The space of a job with a target shape. Raises: InvalidRequest when it cannot be reached."""
    shape = reachable_target(network, target)
    return TargetSpace(network.structure, regular_plan(network.structure, ranking.blocks, ranking.embed, shape))


def better(one: Score, other: Score) -> bool:
    """Nearer to the dense network, and not at the price of right answers."""
    return one.agreement > other.agreement and (one.accuracy or 0.0) >= (other.accuracy or 0.0)


def check_gates(request: JobRequest, data: Dataset, classes: int) -> None:
    """Raises: InvalidRequest when gates are to be trained and cannot be, or the other way round."""
    epochs, needed = request.gates.epochs, method_named(request.method).training == "gates"
    if epochs and not needed:
        raise InvalidRequest(
            f"gates.epochs is {epochs}, but method {request.method!r} has no gates. Set it to 0, or use method 'vtp'."
        )
    if not needed:
        return
    if not epochs:
        raise InvalidRequest(
            f"Method {request.method!r} ranks by gates that are trained first: set gates.epochs to 1 or more (it is 0)."
        )
    if not data.assessed:
        raise InvalidRequest(
            f"Method {request.method!r} trains gates, which needs a data set; this job has none. Add one."
        )
    if not classes:
        raise InvalidRequest(
            f"Method {request.method!r} trains gates, which needs a classifier; this model has none. Set num_classes."
        )
