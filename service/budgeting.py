"""A job's budgets as one pricing function: which device prices what, and what a verification teaches it."""

from collections.abc import Sequence

import numpy as np

from latency.devices import CPU, check_device, describe_device, is_reachable, runtime_of
from latency.pricer import Pricer
from latency.profile import ProfilePricer
from latency.setting import Setting, runtime_version
from latency.table import Sample, Table, TablePricer
from models.errors import ImpossibleBudget, InvalidRequest
from models.structure import Structure
from search.budgets import Budget, Budgets
from search.ranking import Array
from service.request import BudgetRequest, JobRequest

SAFETY = 0.012
"""A measured budget is aimed at this far below its limit: the upper end of the measured interval must be within."""
MOST_SAFETY = 0.1
"""However wide the intervals: a noisier measurement calls for another one, not for a smaller network."""
Place = tuple[str, Setting]
"""Where a latency holds: device and setting."""


def place_of(request: BudgetRequest) -> Place:
    """Raises: UnknownName; InvalidRequest for threads that a profile does not describe."""
    check_device(request.device)
    if is_reachable(request.device):
        runtime = runtime_of(request.device)
        return request.device, Setting(request.setting.threads, request.setting.batch, runtime=runtime)
    described = describe_device(request.device)
    if request.setting.threads != described["threads"]:
        raise InvalidRequest(
            f"Profile {request.device!r} is for {described['threads']} thread, not {request.setting.threads}.",
            threads=request.setting.threads, allowed=[described["threads"]],
        )  # fmt: skip
    return request.device, Setting(request.setting.threads, request.setting.batch, described["precision"])


class Pricing:
    """Prices structures under all budgets of a job. Grows by corrections, which replace the pricer of a place."""

    def __init__(self, request: JobRequest, original: Structure) -> None:
        self.original = original
        self.requests = request.budgets
        self.places = [place_of(b) if b.metric.startswith("latency") else None for b in request.budgets]
        self.budgets = Budgets(tuple(map(_budget, request.budgets, self.places)))
        self._pricers: dict[Place, Pricer] = {}
        self.safety = SAFETY
        for place in self.places:
            if place is not None and not is_reachable(place[0]):
                self._pricers[place] = ProfilePricer(*place)

    @property
    def measured_places(self) -> list[Place]:
        """Where files can be measured; the first is where the report measures too."""
        return list(dict.fromkeys(p for p in self.places if p is not None and is_reachable(p[0])))

    @property
    def report_place(self) -> Place:
        """Where the report's latencies are taken, also when no budget asks for any."""
        return (*self.measured_places, (CPU, Setting(runtime=runtime_version())))[0]

    def set_table(self, place: Place, table: Table) -> None:
        self._pricers[place] = TablePricer(table)

    def table(self, place: Place) -> Table | None:
        pricer = self._pricers.get(place)
        return pricer.table if isinstance(pricer, TablePricer) else None

    def correct(self, place: Place, samples: Sequence[Sample], original_ms: float) -> None:
        """What was measured overrules what was predicted, from the next price on; on a noisy machine, where intervals
        are wide, the aim moves down."""
        for sample in samples:
            noise = sample.ratio.high / sample.ratio.value - 1
            self.safety = max(self.safety, min(MOST_SAFETY, 1.1 * noise + 0.002))
        table = self.table(place)
        if table is not None:
            self.set_table(place, table.corrected(samples, original_ms))

    def aim_lower(self) -> None:
        """After a candidate that was measured above a limit."""
        self.safety += SAFETY / 3

    def impossible(self, costs: Sequence[float]) -> ImpossibleBudget:
        """The error for the lowest predicted costs, safety margin included."""
        aims = zip(costs, self.aims.items, self.budgets.items, strict=True)
        return self.budgets.impossible([cost * budget.limit / aim.limit for cost, aim, budget in aims])

    @property
    def aims(self) -> Budgets:
        """The budgets that the search decodes onto: a little below those that measurement must confirm."""
        aims = []
        for budget, place in zip(self.budgets.items, self.places, strict=True):
            share = 1 - self.safety if place is not None and is_reachable(place[0]) else 1.0
            aims.append(Budget(budget.metric, budget.limit * share, budget.device, budget.setting, budget.statistic))
        return Budgets(tuple(aims))

    def price(self, structures: Sequence[Structure]) -> Array:
        """Costs (S, B) in the budgets' units. A profile counts with the upper end of its interval."""
        columns = [self._column(b, p, structures) for b, p in zip(self.requests, self.places, strict=True)]
        return np.stack(columns, axis=1)

    def _column(self, request: BudgetRequest, place: Place | None, structures: Sequence[Structure]) -> Array:
        metric, _, keep = request.metric.partition("_")
        if place is not None:
            ms = self.upper_ms(place, structures)
            whole = self._pricers[place].price([self.original]).ms[0]
            return ms / whole if keep == "keep" else ms
        counts = np.asarray([getattr(structure, metric) for structure in structures], dtype=np.float64)
        return counts / getattr(self.original, metric) if keep == "keep" else counts

    def upper_ms(self, place: Place, structures: Sequence[Structure]) -> Array:
        """Predicted ms; for a device that cannot be measured, the upper end."""
        prediction = self._pricers[place].price(structures)
        return prediction.ms if is_reachable(place[0]) else prediction.ms + prediction.half_width_ms

    def predicted_keep(self, place: Place, structure: Structure) -> float | None:
        """Predicted latency over the original's; None where nothing prices."""
        if place not in self._pricers:
            return None
        ms = self._pricers[place].price([structure, self.original]).ms
        return float(ms[0] / ms[1])


def _budget(request: BudgetRequest, place: Place | None) -> Budget:
    device, setting = ("", "") if place is None else (place[0], str(place[1]))
    return Budget(request.metric, request.limit, device, setting, request.statistic)
