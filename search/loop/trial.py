"""One evaluated policy, as the journal stores it."""

from dataclasses import dataclass
from typing import Literal

from models.record import Record, later
from search.policy import Policy


@dataclass(frozen=True)
class Score(Record):
    """How well a pruned network does on the selection split.

    agreement: minus the mean KL(dense || pruned), natural logarithm; 0 is perfect.
    accuracy: share of correct labels, None without labels.
    same_class: share of images that get the dense model's class.
    """

    agreement: float
    accuracy: float | None
    same_class: float = 1.0

    def loss(self, dense: "Score") -> float:
        """Loss against the dense network, as a share of the images: the drop in accuracy, or without labels the share
        of images that no longer get the dense model's class."""
        if self.accuracy is None or dense.accuracy is None:
            return 1 - self.same_class
        return dense.accuracy - self.accuracy

    @property
    def value(self) -> float:
        """The number that the search maximises: the agreement, plus the accuracy if there are labels.

        Accuracy alone is not enough: on a selection split of some hundred images it comes in coarse steps and depends
        on luck. The two have similar scales: a KL of 0.01 changes about one answer in a hundred.
        """
        return self.agreement if self.accuracy is None else self.accuracy + self.agreement


@dataclass(frozen=True)
class Trial(Record):
    """One evaluated policy.

    direction: the point of the search cube that was decoded. costs: one value per budget, by the budget's label.
    origin: whether the costs are predicted or measured.
    """

    number: int
    direction: tuple[float, ...]
    policy: Policy
    structure_key: str
    score: float
    accuracy: float | None
    agreement: float
    costs: dict[str, float]
    origin: Literal["predicted", "measured"]
    seconds: float
    start: bool
    """True for an analytic starting point, False for a proposal of the searcher."""
    allowed: bool = True
    """True if the loss is within the limit of the request."""
    local: bool = later(False)
    """True for a step of the local search, which starts from the policy of an earlier trial."""
