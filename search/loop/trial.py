"""One evaluated policy: what is kept of it in the journal."""

from dataclasses import dataclass
from typing import Literal

from models.record import Record
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
        """What is given up, as a share of the images: of accuracy, or without labels of the dense model's answers."""
        if self.accuracy is None or dense.accuracy is None:
            return 1 - self.same_class
        return dense.accuracy - self.accuracy

    @property
    def value(self) -> float:
        """What the search maximises. With labels, both: a selection split of some hundred images knows accuracy in steps
        only and by luck, and a KL of 0.01 changes about one answer in a hundred."""
        return self.agreement if self.accuracy is None else self.accuracy + self.agreement


@dataclass(frozen=True)
class Trial(Record):
    """costs: one value per budget, by its label, as `origin` says. direction: where the searcher looked."""

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
    """An analytic starting point, not a proposal of the searcher."""
    allowed: bool = True
    """Within the loss that the request allows."""
