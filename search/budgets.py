"""Budgets: upper limits that must all hold. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.errors import ImpossibleBudget, InvalidRequest
from models.record import Record

Metric = Literal[
    "latency_ms",
    "latency_keep",
    "macs",
    "macs_keep",
    "params",
    "params_keep",
    "file_bytes",
    "file_keep",
    "memory_bytes",
    "memory_keep",
]
UNITS = {
    "latency_ms": "ms",
    "latency_keep": "of the original's latency",
    "macs": "MACs",
    "macs_keep": "of the original's MACs",
    "params": "parameters",
    "params_keep": "of the original's parameters",
    "file_bytes": "bytes of the file",
    "file_keep": "of the original's file size",
    "memory_bytes": "bytes of memory",
    "memory_keep": "of the original's memory",
}


def quantity_of(metric: Metric) -> str:
    """The quantity that a metric limits: "latency", "macs", "params", "file" or "memory"."""
    return metric.partition("_")[0]


@dataclass(frozen=True)
class Budget(Record):
    """One upper limit, in the unit of its metric. device and setting (as text) are for latency and memory only."""

    metric: Metric
    limit: float
    device: str = ""
    setting: str = ""
    statistic: Literal["p50", "mean", "p95"] = "p50"
    """p50: over runs on one input. mean and p95: over images, if the network's token count depends on the image."""

    @property
    def label(self) -> str:
        """A short name that is unique within a job. Costs are stored under it."""
        name = self.metric if self.statistic == "p50" else f"{self.metric} {self.statistic}"
        return f"{name}@{self.device} ({self.setting})" if self.device else name

    @property
    def quantity(self) -> str:
        return quantity_of(self.metric)

    @property
    def is_keep(self) -> bool:
        return self.metric.endswith("_keep")

    def describe(self, value: float) -> str:
        """Text for people: `value` with the unit, device and statistic of this budget."""
        shown = f"{value:.4g}" if value < 1e5 else f"{value:,.0f}"
        where = f" on {self.device} ({self.setting})" if self.device else ""
        where += "" if self.statistic == "p50" else f", {self.statistic} over images"
        return f"{shown} {UNITS[self.metric]}{where}"


@dataclass(frozen=True)
class Budgets(Record):
    items: tuple[Budget, ...]

    def __post_init__(self) -> None:
        """Check the budgets. Raises: InvalidRequest when two of them limit the same quantity."""
        labels = [budget.label for budget in self.items]
        for label in labels:
            if labels.count(label) > 1:
                raise InvalidRequest(
                    f"Two budgets limit {label}. A job may have only one budget for each quantity. Give only the"
                    " smaller one.",
                    label=label,
                )

    def met(self, costs: Sequence[float]) -> bool:
        """True if no cost exceeds its budget. costs: one value per budget, in the budget's unit."""
        return all(cost <= budget.limit for cost, budget in zip(costs, self.items, strict=True))

    def binding(self, costs: Sequence[float]) -> Budget:
        """The budget of which the costs use the largest share."""
        shares = [cost / budget.limit for cost, budget in zip(costs, self.items, strict=True)]
        return self.items[shares.index(max(shares))]

    def impossible(self, best: Sequence[float]) -> ImpossibleBudget:
        """Build the error that names the best reachable value. best: the lowest cost of any policy, one per budget."""
        budget = self.binding(best)
        reached = best[self.items.index(budget)]
        return ImpossibleBudget(
            f"No policy meets the budget of {budget.describe(budget.limit)}. The smallest network that vitfit can"
            f" build needs {budget.describe(reached)}. Raise the budget to at least this value, or start from a"
            " smaller model.",
            metric=budget.metric,
            limit=budget.limit,
            best_reachable=reached,
        )
