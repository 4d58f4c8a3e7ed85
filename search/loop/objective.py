"""What the search is after: the best score within the budgets, or the lowest cost with at most a given loss."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from search.budgets import Budgets
from search.loop.trial import Score

ROUNDING = 1e-9
CHARGE, CHARGED = 10.0, 0.1
"""Cost of a point that is lost too much, in points of the budget; and up to which excess."""


class Objective(Protocol):
    @property
    def extra(self) -> int:
        """Dimensions of a direction beyond the policy space's."""
        ...

    def aims(self, budgets: Budgets, direction: Sequence[float]) -> Budgets:
        """The budgets onto which a direction is decoded."""
        ...

    def value(self, score: Score, budgets: Budgets, costs: Sequence[float]) -> float:
        """What is maximised."""
        ...

    def allows(self, score: Score) -> bool:
        """Whether a policy of this score may be delivered."""
        ...


@dataclass(frozen=True)
class BestScore:
    """Every proposal uses the whole budget, so the score alone decides."""

    extra: int = 0

    def aims(self, budgets: Budgets, _direction: Sequence[float]) -> Budgets:
        return budgets

    def value(self, score: Score, _budgets: Budgets, _costs: Sequence[float]) -> float:
        return score.value

    def allows(self, _score: Score) -> bool:
        return True


@dataclass(frozen=True)
class LowestCost:
    """One more dimension says how far below the budgets to aim: 1 at them, 0 at what the smallest network costs.

    A loss up to `max_loss` is free; what exceeds it is charged, so that the hill is smooth for the Gaussian process, and
    such a policy is not allowed.
    """

    dense: Score
    max_loss: float
    least: tuple[float, ...]
    """Costs of the smallest network, per budget."""
    extra: int = 1

    def aims(self, budgets: Budgets, direction: Sequence[float]) -> Budgets:
        items = []
        for budget, least in zip(budgets.items, self.least, strict=True):
            limit = least + direction[-1] * (budget.limit - least)
            items.append(dataclasses.replace(budget, limit=max(limit, 1.001 * least)))
        return Budgets(tuple(items))

    def value(self, score: Score, budgets: Budgets, costs: Sequence[float]) -> float:
        excess = max(0.0, score.loss(self.dense) - self.max_loss - ROUNDING)
        fullest = max(cost / budget.limit for cost, budget in zip(costs, budgets.items, strict=True))
        return -fullest - CHARGE * min(excess, CHARGED)

    def allows(self, score: Score) -> bool:
        return score.loss(self.dense) <= self.max_loss + ROUNDING
