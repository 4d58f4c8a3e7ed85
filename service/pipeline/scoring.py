"""How a policy gets its score. What that needs of a job, and nothing else, so that it can be sent to another process."""

from dataclasses import dataclass

from torch import Tensor

from models import throttle as pace
from models.evaluation.metrics import agreement, correct, feature_agreement, same_answer
from models.networks.network import Network
from models.statistics.statistics import Statistics
from models.structure import Plan
from models.structure.selector_plan import without_selectors
from search.loop.trial import Score
from search.policy import Policy
from search.spaces.space import Space


@dataclass(frozen=True)
class Answers:
    """The images of the selection split, their labels (None: without), and what the original says to them."""

    images: Tensor
    labels: Tensor | None
    dense: Tensor
    classes: int
    """0: the network has no classifier."""

    def score(self, network: Network) -> Score:
        outputs = network.outputs(self.images)
        right = self.correct(outputs)
        same = same_answer(self.dense, outputs, self.classes)
        distance = difference(self.dense, outputs, self.classes)
        return Score(distance, None if right is None else right / len(outputs), same)

    def dense_score(self) -> Score:
        """What the original gets."""
        right = self.correct(self.dense)
        return Score(0.0, None if right is None else right / len(self.dense))

    def correct(self, outputs: Tensor) -> int | None:
        return right_answers(outputs, self.labels, self.classes)


@dataclass(frozen=True)
class Scorer:
    """statistics: for recovery; None: without."""

    source: Network
    statistics: Statistics | None
    space: Space
    answers: Answers
    device: str = "cpu"
    """Of torch, where the selection images run."""

    def __call__(self, policy: Policy) -> Score:
        """Prunes physically, recovers, and runs the selection images."""
        with pace.step():
            network = self.prune(without_selectors(self.space.plan(policy)))
            network.module.to(self.device)
            return self.answers.score(network)

    def prune(self, plan: Plan) -> Network:
        return self.source.pruned(plan, self.statistics)


def difference(dense: Tensor, pruned: Tensor, classes: int) -> float:
    """0 is perfect, the others are less. By KL of the classes, or by distance of the features."""
    return agreement(dense, pruned) if classes else feature_agreement(dense, pruned)


def right_answers(outputs: Tensor, labels: Tensor | None, classes: int) -> int | None:
    """Images that get their label; None without labels or without classes."""
    return None if labels is None or not classes else correct(outputs, labels)
