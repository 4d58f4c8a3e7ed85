"""Budgets: upper limits that must all hold. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.errors import ImpossibleBudget, InvalidRequest
from models.record import Record

Metric = Literal[
    "latency_ms", "latency_keep", "macs", "macs_keep", "params", "params_keep", "file_bytes", "file_keep", "memory_bytes",
    "memory_keep",
]  # fmt: skip
UNITS = {
    "latency_ms": "ms",
    "latency_keep": "of the original's latency",
    "macs": "MACs",
    "macs_keep": "of the original's MACs",
    "params": "parameters",
    "params_keep": "of the original's parameters",
    "file_bytes": "bytes of the file",
    "file_keep": "of the original's file",
    "memory_bytes": "bytes of memory",
    "memory_keep": "of the original's memory",
}


def quantity_of(metric: Metric) -> str:
    """latency, macs, params, file or memory."""
    return metric.partition("_")[0]


@dataclass(frozen=True)
class Budget(Record):
    """One upper limit in the metric's unit. device and setting (as text) belong to latencies and memory only."""

    metric: Metric
    limit: float
    device: str = ""
    setting: str = ""
    statistic: Literal["p50", "mean", "p95"] = "p50"
    """p50 of the runs on one input; mean, p95: over images, of a network whose number of tokens depends on the image."""

    @property
    def label(self) -> str:
        """Short and unique within a job: the key of costs."""
        name = self.metric if self.statistic == "p50" else f"{self.metric} {self.statistic}"
        return f"{name}@{self.device} ({self.setting})" if self.device else name

    @property
    def quantity(self) -> str:
        return quantity_of(self.metric)

    @property
    def is_keep(self) -> bool:
        return self.metric.endswith("_keep")

    def describe(self, value: float) -> str:
        """`value` with this budget's unit, for people."""
        shown = f"{value:.4g}" if value < 1e5 else f"{value:,.0f}"
        where = f" on {self.device} ({self.setting})" if self.device else ""
        where += "" if self.statistic == "p50" else f", {self.statistic} over images"
        return f"{shown} {UNITS[self.metric]}{where}"


@dataclass(frozen=True)
class Budgets(Record):
    items: tuple[Budget, ...]

    def __post_init__(self) -> None:
        """Raises: InvalidRequest when two budgets limit the same quantity."""
        labels = [budget.label for budget in self.items]
        for label in labels:
            if labels.count(label) > 1:
                raise InvalidRequest(f"Two budgets limit {label}; give the smaller one only", label=label)

    def met(self, costs: Sequence[float]) -> bool:
        """costs: one value per budget, in the budget's unit."""
        return all(cost <= budget.limit for cost, budget in zip(costs, self.items, strict=True))

    def binding(self, costs: Sequence[float]) -> Budget:
        """The budget that is fullest."""
        shares = [cost / budget.limit for cost, budget in zip(costs, self.items, strict=True)]
        return self.items[shares.index(max(shares))]

    def impossible(self, best: Sequence[float]) -> ImpossibleBudget:
        """The error for `best`: the lowest costs that any policy reaches."""
        budget = self.binding(best)
        reached = best[self.items.index(budget)]
        return ImpossibleBudget(
            f"No policy meets {budget.describe(budget.limit)}: the smallest network that vitfit would build takes "
            f"{budget.describe(reached)}. Raise this budget to at least that, or start from a smaller model.",
            metric=budget.metric, limit=budget.limit, best_reachable=reached,
        )  # fmt: skip
