"""The objective of a search: the best score within the budgets, or the lowest cost with at most a given loss."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from search.budgets import Budgets
from search.loop.trial import Score

ROUNDING = 1e-9
CHARGE, CHARGED = 10.0, 0.1
"""CHARGE: penalty in percentage points of the budget for each percentage point of loss above the limit. CHARGED: loss
above the limit (share of images) from which on the penalty no longer grows."""

FURTHER = 0.95
"""Factor of the targets of a local search for the lowest cost."""


class Objective(Protocol):
    @property
    def extra(self) -> int:
        """Number of dimensions of a direction beyond those of the policy space."""
        ...

    def aims(self, budgets: Budgets, direction: Sequence[float]) -> Budgets:
        """The targets: the budgets onto which this direction is decoded."""
        ...

    def further(self, direction: Sequence[float]) -> tuple[float, ...]:
        """The direction of a local step that starts from this direction. Its targets may be lower."""
        ...

    def value(self, score: Score, budgets: Budgets, costs: Sequence[float]) -> float:
        """The number that the search maximises."""
        ...

    def allows(self, score: Score) -> bool:
        """True if a policy with this score may be delivered."""
        ...


@dataclass(frozen=True)
class BestScore:
    """Maximises the score. Every proposal uses the whole budget, so the score alone decides."""

    extra: int = 0

    def aims(self, budgets: Budgets, _direction: Sequence[float]) -> Budgets:
        return budgets

    def further(self, direction: Sequence[float]) -> tuple[float, ...]:
        return tuple(direction)

    def value(self, score: Score, _budgets: Budgets, _costs: Sequence[float]) -> float:
        return score.value

    def allows(self, _score: Score) -> bool:
        return True


@dataclass(frozen=True)
class LowestCost:
    """Minimises the cost while the loss is at most `max_loss` (share of images).

    One more dimension of the direction sets the targets: 1 means the budgets, 0 the costs of the smallest network. A
    loss up to `max_loss` has no penalty. A policy with a larger loss is not allowed; it gets a penalty that grows with
    the loss, so that the objective is smooth for the Gaussian process.
    """

    dense: Score
    max_loss: float
    least: tuple[float, ...]
    """Costs of the smallest network, one per budget."""
    extra: int = 1

    def aims(self, budgets: Budgets, direction: Sequence[float]) -> Budgets:
        items = []
        for budget, least in zip(budgets.items, self.least, strict=True):
            limit = least + direction[-1] * (budget.limit - least)
            items.append(dataclasses.replace(budget, limit=max(limit, 1.001 * least)))
        return Budgets(tuple(items))

    def further(self, direction: Sequence[float]) -> tuple[float, ...]:
        """The same direction with slightly lower targets, because a better network may cost less."""
        return (*direction[:-1], FURTHER * direction[-1])

    def value(self, score: Score, budgets: Budgets, costs: Sequence[float]) -> float:
        excess = max(0.0, score.loss(self.dense) - self.max_loss - ROUNDING)
        fullest = max(cost / budget.limit for cost, budget in zip(costs, budgets.items, strict=True))
        return -fullest - CHARGE * min(excess, CHARGED)

    def allows(self, score: Score) -> bool:
        return score.loss(self.dense) <= self.max_loss + ROUNDING
