"""One policy that a job has tried."""

from dataclasses import dataclass, field
from typing import Any, Literal

from vitfit.result import Result


@dataclass(frozen=True, kw_only=True)
class Trial(Result):
    """One policy that was tried, and its score.

    direction: the point of the search cube that was decoded to the policy. score: larger is better. accuracy: share of
    correct labels on the selection split; None without labels. agreement: minus the mean KL divergence from the
    original; 0 is perfect. costs: one value per budget, by the budget's label. seconds: how long the trial took.
    start: True for an analytic starting point. local: True for a step of the local search. allowed: whether the
    loss is within the limit of the request.
    """

    number: int
    direction: tuple[float, ...] = ()
    policy: dict[str, Any] = field(default_factory=dict)
    structure_key: str | None = None
    score: float
    accuracy: float | None = None
    agreement: float | None = None
    costs: dict[str, float] = field(default_factory=dict)
    origin: Literal["predicted", "measured"] | None = None
    seconds: float | None = None
    start: bool = False
    local: bool = False
    allowed: bool = True
