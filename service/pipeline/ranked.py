"""What a job computes once before it searches: statistics, the ranking's policy space, and the original's outputs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from models.atomic_write import replacing, write_whole
from models.data.dataset import Batch
from models.evaluation.sensitivity import quantisation_order
from models.loading.timm_target import check_same_design, target_structure
from models.networks.network import Network
from models.statistics.statistics import Statistics, from_tensors, to_tensors
from models.structure import Layer, Plan, Structure
from search.criteria import CRITERIA, rank
from search.loop.trial import Score
from search.methods import criterion_of, method_for
from search.ranking import Ranking
from search.spaces import space_of
from search.spaces.fp16 import HalfSpace
from search.spaces.precision import LEFT_OUT, PrecisionSpace
from search.spaces.space import Space
from search.spaces.target import TargetSpace
from search.spaces.target_shape import check_reachable, regular_plan
from service.jobs.job_request import JobRequest
from service.pipeline.evaluation import Evaluation
from service.pipeline.precision import priced_in_one_precision
from service.pipeline.scoring import Answers, Scorer


@dataclass(frozen=True)
class Ranked:
    """A job's network with the statistics and the policy space that were found on its calibration split.

    source: what is pruned, the original or, where the method trains it first (VTP's gates), the trained original.
    dense: outputs of the original on the selection split, (n, C).
    """

    evaluation: Evaluation
    source: Network
    statistics: Statistics
    space: Space
    dense: Tensor

    @property
    def was_trained(self) -> bool:
        """Whether the original was trained before it is pruned."""
        return self.source is not self.evaluation.network

    @property
    def answers(self) -> Answers:
        """The selection split, and what the original says to it."""
        selection = self.evaluation.selection
        return Answers(selection.images, selection.labels, self.dense, self.evaluation.classes)

    def prune(self, plan: Plan, recovery: bool) -> Network:
        return self.source.pruned(plan, self.statistics if recovery else None)

    def final(self, plan: Plan, recovery: bool) -> Network:
        """The network in its final form: pruned, recovered and, if the selection score improves, recovered in sequence."""
        network = self.prune(plan, recovery)
        if not recovery or not network.recovers_in_sequence:
            return network
        again = network.recovered_in_sequence(self.source, self.evaluation.calibration.images)
        return again if better(self.score_of(again), self.score_of(network)) else network

    def scorer(self, recovery: bool, device: str = "cpu") -> Scorer:
        """Scores policies, in this process or in another. device: where torch runs the selection images."""
        return Scorer(self.source, self.statistics if recovery else None, self.space, self.answers, device)

    def score_of(self, network: Network) -> Score:
        return self.answers.score(network)


def rank_network(
    evaluation: Evaluation,
    request: JobRequest,
    work: Path,
    trained: Network | None = None,
    check: Callable[[], None] = lambda: None,
) -> Ranked:
    """Takes statistics and ranks. Slow parts are kept in `work` for a resumed job.

    trained: the original trained on, to be pruned in its place. check may raise to stop.
    """
    source = evaluation.network if trained is None else trained
    method = method_for(request.method, request.keep_spatial)
    criterion = criterion_of(method, request.criterion)
    statistics = _statistics(source, evaluation.calibration, criterion, work)
    ranking = rank(criterion, source.weights(), statistics)
    space: Space = space_of(method, evaluation.network.structure, ranking, request.space)
    if request.target is not None:
        space = target_space(evaluation.network, ranking, request.target)
    if "int8" in request.precisions:
        order = _quantisation_order(source, evaluation.calibration, work, check)
        left_out = 0.0 if priced_in_one_precision(request) else LEFT_OUT
        space = PrecisionSpace(space, order, request.precisions, left_out)
    if "fp16" in request.precisions:
        space = HalfSpace(space)
    dense = evaluation.network.outputs(evaluation.selection.images)
    return Ranked(evaluation, source, statistics, space, dense)


def _statistics(source: Network, calibration: Batch, criterion: str, work: Path) -> Statistics:
    stored = work / f"statistics-{criterion}.safetensors"
    if stored.exists():
        return from_tensors(load_file(stored))
    found = source.statistics(calibration.images, CRITERIA[criterion].needs, calibration.labels)
    with replacing(stored) as beside:
        save_file(to_tensors(found), beside)
    return found


def _quantisation_order(
    source: Network, calibration: Batch, work: Path, check: Callable[[], None]
) -> list[tuple[int, Layer]]:
    stored = work / "quantisation-order.json"
    if stored.exists():
        return [(place, layer) for place, layer in json.loads(stored.read_text())]
    order = quantisation_order(source, calibration.images, check)
    write_whole(stored, json.dumps(order))
    return order


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
    """True if `one` agrees more with the dense network than `other`, and is at least as accurate."""
    return one.agreement > other.agreement and (one.accuracy or 0.0) >= (other.accuracy or 0.0)
