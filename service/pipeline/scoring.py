"""Score policies on the selection split.

A score depends only on a `Scorer` and on the policy. A `Scorer` can therefore be sent to another process.
"""

import dataclasses
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

PART, LEAST_PART = 8, 24
"""A part of the images is one in PART of them, and at least LEAST_PART."""


@dataclass(frozen=True)
class Answers:
    """The images of the selection split, their labels (None if there are none), and the outputs of the original.

    dense: the outputs of the original, (n, C).
    """

    images: Tensor
    labels: Tensor | None
    dense: Tensor
    classes: int
    """Number of classes; 0 if the network has no classifier."""

    def part(self, count: int) -> "Answers":
        """Return the same for the first `count` images."""
        labels = None if self.labels is None else self.labels[:count]
        return Answers(self.images[:count], labels, self.dense[:count], self.classes)

    def score(self, network: Network) -> Score:
        outputs = network.outputs(self.images)
        right = self.correct(outputs)
        same = same_answer(self.dense, outputs, self.classes)
        distance = difference(self.dense, outputs, self.classes)
        return Score(distance, None if right is None else right / len(outputs), same)

    def dense_score(self) -> Score:
        """Return the score of the original."""
        right = self.correct(self.dense)
        return Score(0.0, None if right is None else right / len(self.dense))

    def correct(self, outputs: Tensor) -> int | None:
        return right_answers(outputs, self.labels, self.classes)


@dataclass(frozen=True)
class Scorer:
    """A function from policy to score. statistics: for recovery; None: the networks are not recovered."""

    source: Network
    statistics: Statistics | None
    space: Space
    answers: Answers
    device: str = "cpu"
    """The torch device that runs the selection images."""

    def __call__(self, policy: Policy) -> Score:
        """Prune the network physically, recover it, run the selection images, and return the score."""
        with pace.step():
            network = self.prune(without_selectors(self.space.plan(policy)))
            network.module.to(self.device)
            return self.answers.score(network)

    def on_a_part(self) -> "Scorer":
        """Return the same scorer for a part of the images. Differences between its scores are coarse, but cheap."""
        return dataclasses.replace(self, answers=self.answers.part(max(LEAST_PART, len(self.answers.images) // PART)))

    def prune(self, plan: Plan) -> Network:
        return self.source.pruned(plan, self.statistics)


def difference(dense: Tensor, pruned: Tensor, classes: int) -> float:
    """Return how well the outputs of two networks agree. 0 is perfect, and all other values are below 0.

    With a classifier, this is minus the KL divergence of the class probabilities. Without one, it is minus the relative
    squared distance of the features.
    """
    return agreement(dense, pruned) if classes else feature_agreement(dense, pruned)


def right_answers(outputs: Tensor, labels: Tensor | None, classes: int) -> int | None:
    """Return the number of correctly classified images; None if there are no labels or no classes."""
    return None if labels is None or not classes else correct(outputs, labels)
