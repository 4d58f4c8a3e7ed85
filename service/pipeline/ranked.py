"""Compute what a job needs once before its search: statistics, ranking, space, and the outputs of the original."""

import dataclasses
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
from models.rotation.bases import bases_from
from models.statistics.statistics import Statistics, from_tensors, to_tensors
from models.structure import Layer, Plan, Structure
from search.criteria import CRITERIA, rank
from search.criteria.rotated import with_bases
from search.loop.trial import Score
from search.methods import Basis, basis_for, criterion_of, method_for
from search.ranking import Ranking
from search.spaces import space_of
from search.spaces.fp16 import HalfSpace
from search.spaces.precision import LEFT_OUT, PrecisionSpace
from search.spaces.space import Space
from search.spaces.target import TargetSpace
from search.spaces.target_shape import check_reachable, check_rotated_target, regular_plan, rotated_plan
from service.jobs.job_request import JobRequest
from service.pipeline.evaluation import Evaluation
from service.pipeline.precision import priced_in_one_precision
from service.pipeline.scoring import Answers, Scorer


@dataclass(frozen=True)
class Ranked:
    """The network of a job, with the statistics and the space that were computed on the calibration split.

    source: the network that is pruned. This is the original, or the original in rotated bases, which computes the
    same. If the method trains it first (the gates of VTP), it is the trained original.
    dense: outputs of the original on the selection split, (n, C).
    """

    evaluation: Evaluation
    source: Network
    statistics: Statistics
    space: Space
    dense: Tensor

    @property
    def was_trained(self) -> bool:
        """Whether the original was trained before the pruning."""
        return self.source is not self.evaluation.network and self.source.rotation is None

    @property
    def answers(self) -> Answers:
        """The selection split, and the outputs of the original for its images."""
        selection = self.evaluation.selection
        return Answers(selection.images, selection.labels, self.dense, self.evaluation.classes)

    def prune(self, plan: Plan, recovery: bool) -> Network:
        """Return the network that a plan describes. A plan that removes nothing gives the original itself."""
        if self._gives_the_original(plan):
            return self.evaluation.network.pruned(dataclasses.replace(plan, rotated=()), None)
        return self.source.pruned(plan, self.statistics if recovery else None)

    def final(self, plan: Plan, recovery: bool) -> Network:
        """Prune the network to its final form, and return it.

        The network is recovered if `recovery` is set. Sequential recovery follows if it improves the score on the
        selection split. An int8 network gets the basis in which the emulation of int8 agrees best.
        """
        network = self.prune(plan, recovery)
        if self._gives_the_original(plan):
            return network
        if recovery and network.recovers_in_sequence:
            again = network.recovered_in_sequence(self.source, self.evaluation.calibration.images)
            network = again if better(self.score_of(again), self.score_of(network)) else network
        spreads = network.spreads()
        return max((network, *spreads), key=lambda one: self.score_of(one).agreement) if spreads else network

    def _gives_the_original(self, plan: Plan) -> bool:
        """Return whether a plan for a network in rotated bases removes nothing."""
        structure = self.source.structure
        return self.source.rotation is not None and plan.apply_to(structure).macs == structure.macs

    def scorer(self, recovery: bool, device: str = "cpu") -> Scorer:
        """Return a scorer of policies, which can run in this process or in another one.

        device: the torch device that runs the selection images.
        """
        return Scorer(self.source, self.statistics if recovery else None, self.space, self.answers, device)

    def score_of(self, network: Network) -> Score:
        return self.answers.score(network)


def rank_network(
    evaluation: Evaluation,
    request: JobRequest,
    work: Path,
    trained: Network | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> Ranked:
    """Compute statistics and ranking, and return them with the space and the outputs of the original.

    Slow results are stored in `work`, so that a resumed job can reuse them.

    trained: the trained original, which is pruned instead of the original; None if the method trains nothing before the
    ranking. check: called often; it raises when the job has to stop.
    """
    source = evaluation.network if trained is None else trained
    method = method_for(request.method, request.keep_spatial)
    criterion = criterion_of(method, request.criterion)
    if trained is None and basis_for(method, request.basis) == "rotated":
        source = _rotated(source, evaluation.calibration, work)
    statistics = _statistics(source, evaluation.calibration, criterion, work)
    ranking = with_bases(rank(criterion, source.weights(), statistics), source.rotation)
    space: Space = space_of(method, source.structure, ranking, request.space)
    if request.target is not None:
        space = target_space(evaluation.network, source.structure, ranking, request.target)
    if "int8" in request.precisions:
        order = _quantisation_order(source, evaluation.calibration, work, check)
        left_out = 0.0 if priced_in_one_precision(request) else LEFT_OUT
        space = PrecisionSpace(space, order, request.precisions, left_out)
    if "fp16" in request.precisions:
        space = HalfSpace(space)
    dense = evaluation.network.outputs(evaluation.selection.images)
    return Ranked(evaluation, source, statistics, space, dense)


def _rotated(network: Network, calibration: Batch, work: Path) -> Network:
    """Return the network in its rotated bases. A network that allows none stays as it is."""
    stored = work / "bases.safetensors"
    if stored.exists():
        return network.rotated(bases_from(load_file(stored)))
    bases = network.bases(calibration.images)
    if bases is None:
        return network
    with replacing(stored) as beside:
        save_file(to_tensors(bases), beside)
    return network.rotated(bases)


def _statistics(source: Network, calibration: Batch, criterion: str, work: Path) -> Statistics:
    basis = "" if source.rotation is None else "-rotated"
    stored = work / f"statistics-{criterion}{basis}.safetensors"
    if stored.exists():
        return from_tensors(Statistics, load_file(stored))
    needs = CRITERIA[criterion].needs
    if source.rotation is not None and "embed" in source.rotation.axes:
        needs = needs | source.input_kinds
    found = source.statistics(calibration.images, needs, calibration.labels)
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


def reachable_target(network: Network, target: str, basis: Basis) -> Structure:
    """Return the structure of a job's target.

    Raises: InvalidRequest, which lists each reason why pruning cannot reach the target.
    """
    shape = target_structure(network, target)
    if basis == "rotated":
        check_rotated_target(network.structure, network.rotatable, shape)
    else:
        check_reachable(network.structure, shape)
    check_same_design(network, target)
    return shape


def target_space(network: Network, source: Structure, ranking: Ranking, target: str) -> TargetSpace:
    """Return the space of a job with a target.

    source: the structure of the network that is pruned, which may be `network` in rotated bases.
    Raises: InvalidRequest when pruning cannot reach the target.
    """
    shape = reachable_target(network, target, "rotated" if ranking.rotated else "chosen")
    if ranking.rotated:
        return TargetSpace(source, rotated_plan(source, ranking, shape))
    return TargetSpace(source, regular_plan(source, ranking.blocks, ranking.embed, shape))


def better(one: Score, other: Score) -> bool:
    """Return True if `one` agrees better with the original than `other` does, and is at least as accurate."""
    return one.agreement > other.agreement and (one.accuracy or 0.0) >= (other.accuracy or 0.0)
