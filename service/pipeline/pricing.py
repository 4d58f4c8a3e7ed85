"""Price structures under all budgets of a job, and correct these prices by what the verification has measured."""

from collections.abc import Sequence

import numpy as np

from latency.devices.devices import CPU, CUDA, check_device, describe_device, is_reachable, runtime_of
from latency.devices.setting import CPU_PROVIDER, CUDA_PROVIDER, Setting, runtime_version
from latency.prediction.pricer import Pricer
from latency.prediction.profile import pricer_of
from latency.prediction.sizes import QUANTITIES, Quantity, SizeLine
from latency.prediction.table import Sample, Table, TablePricer
from models.errors import ImpossibleBudget, InvalidRequest
from models.structure import Structure
from search.budgets import Budget, Budgets, quantity_of
from search.ranking import Array
from service.jobs.job_request import BudgetRequest, JobRequest
from service.jobs.quick_checks import check_threads

SAFETY = 0.012
"""Safety margin of a measured budget, as a share of its limit.

The search decodes to the limit minus this margin, because the upper end of the measured interval must be within the
limit.
"""
MOST_SAFETY = 0.1
"""Upper limit on the safety margin. If the noise is larger, a new measurement helps, and a smaller network does not."""
DeviceSetting = tuple[str, Setting]
"""The device and the setting to which a latency belongs."""
SizeKey = tuple[Quantity, Setting]


def place_of(request: BudgetRequest) -> DeviceSetting:
    """Return the device and the complete setting of a budget.

    Raises: UnknownName; InvalidRequest when a profile does not describe this number of threads.
    """
    check_device(request.device)
    if is_reachable(request.device):
        provider = CUDA_PROVIDER if request.device.startswith(CUDA) else CPU_PROVIDER
        runtime = runtime_of(request.device)
        setting = Setting(request.setting.threads, request.setting.batch, provider=provider, runtime=runtime)
        return request.device, setting
    described = describe_device(request.device)
    check_threads(request, described)
    return request.device, Setting(request.setting.threads, request.setting.batch, described["precision"])


def _where(request: BudgetRequest) -> DeviceSetting | None:
    """Return the device and setting of a latency or memory budget; None for other budgets.

    Raises: UnknownName; InvalidRequest when a memory budget names another device than this machine's CPU.
    """
    quantity = quantity_of(request.metric)
    if quantity == "memory" and request.device != CPU:
        raise InvalidRequest(
            f"Memory can be measured on {CPU} only, not on {request.device}. Leave out device.",
            device=request.device,
            allowed=[CPU],
        )
    return place_of(request) if quantity in ("latency", "memory") else None


class Pricing:
    """Prices structures under all budgets of a job.

    A correction replaces the pricer of one place. A place is a device with a setting.
    """

    def __init__(self, request: JobRequest, original: Structure) -> None:
        self.original = original
        self.requests = request.budgets
        wheres = [_where(budget) for budget in request.budgets]
        self.budgets = Budgets(tuple(map(_budget, request.budgets, wheres)))
        quantities = [budget.quantity for budget in self.budgets.items]
        self.places = [where if q == "latency" else None for where, q in zip(wheres, quantities, strict=True)]
        self.measured_places = list(dict.fromkeys(p for p in self.places if p is not None and is_reachable(p[0])))
        """The places where files can be measured. The report measures at the first of them."""
        self._size_keys = [self._size_key(q, where) for q, where in zip(quantities, wheres, strict=True)]
        self._lines: dict[SizeKey, SizeLine] = {}
        self._pricers: dict[DeviceSetting, Pricer] = {}
        self.safety = SAFETY
        for place in self.places:
            if place is not None and place not in self.measured_places:
                self._pricers[place] = pricer_of(*place, original)

    @property
    def report_place(self) -> DeviceSetting:
        """The place where the report's latencies are measured, even if no budget limits the latency."""
        return (*self.measured_places, (CPU, Setting(runtime=runtime_version())))[0]

    @property
    def size_keys(self) -> list[SizeKey]:
        """The sizes that budgets limit: file size or memory, each with its setting."""
        return list(dict.fromkeys(key for key in self._size_keys if key is not None))

    def set_line(self, key: SizeKey, line: SizeLine) -> None:
        self._lines[key] = line

    def line(self, key: SizeKey) -> SizeLine | None:
        return self._lines.get(key)

    def _size_key(self, quantity: str, where: DeviceSetting | None) -> SizeKey | None:
        if quantity == "file":
            return "file", self.report_place[1]
        return ("memory", where[1]) if quantity == "memory" and where is not None else None

    def set_table(self, place: DeviceSetting, table: Table) -> None:
        self._pricers[place] = TablePricer(table)

    def table(self, place: DeviceSetting) -> Table | None:
        pricer = self._pricers.get(place)
        return pricer.table if isinstance(pricer, TablePricer) else None

    def correct(self, place: DeviceSetting, samples: Sequence[Sample], original_ms: float) -> None:
        """Correct the predictions by measured latencies. Later prices use the corrected predictions.

        On a noisy machine, where the intervals are wide, the safety margin grows.
        """
        for sample in samples:
            noise = sample.ratio.high / sample.ratio.value - 1
            self.safety = max(self.safety, min(MOST_SAFETY, 1.1 * noise + 0.002))
        table = self.table(place)
        if table is not None:
            self.set_table(place, table.corrected(samples, original_ms))

    def aim_lower(self) -> None:
        """Increase the safety margin. Called after a candidate was measured above a limit."""
        self.safety += SAFETY / 3

    def impossible(self, costs: Sequence[float]) -> ImpossibleBudget:
        """Return the error for a job that cannot meet its budgets.

        costs: the lowest predicted costs. The values in the error include the safety margin.
        """
        aims = zip(costs, self.aims.items, self.budgets.items, strict=True)
        return self.budgets.impossible([cost * budget.limit / aim.limit for cost, aim, budget in aims])

    @property
    def aims(self) -> Budgets:
        """The targets of the budgets, to which the search decodes.

        The target of a measured budget is its limit minus the safety margin. Every other target is the limit itself.
        """
        aims = []
        for budget, place in zip(self.budgets.items, self.places, strict=True):
            measured = budget.quantity in QUANTITIES or place in self.measured_places
            share = 1 - self.safety if measured else 1.0
            aims.append(Budget(budget.metric, budget.limit * share, budget.device, budget.setting, budget.statistic))
        return Budgets(tuple(aims))

    def price(self, structures: Sequence[Structure]) -> Array:
        """Return the costs (S, B) of S structures under B budgets, in the units of the budgets.

        For a profile, the cost is the upper end of the predicted interval.
        """
        return np.stack([self._column(i, structures) for i in range(len(self.requests))], axis=1)

    def _column(self, number: int, structures: Sequence[Structure]) -> Array:
        budget, place, key = self.budgets.items[number], self.places[number], self._size_keys[number]
        if place is not None:
            costs, whole = self.upper_ms(place, structures), float(self._pricers[place].price([self.original]).ms[0])
        elif key is not None:
            costs, whole = self._lines[key].price(structures), self._lines[key].original_bytes
        else:
            costs = np.asarray([getattr(structure, budget.quantity) for structure in structures], dtype=np.float64)
            whole = getattr(self.original, budget.quantity)
        return costs / whole if budget.is_keep else costs

    def upper_ms(self, place: DeviceSetting, structures: Sequence[Structure]) -> Array:
        """Return the predicted latencies in ms.

        For a device that cannot be measured, return the upper ends of the intervals.
        """
        prediction = self._pricers[place].price(structures)
        return prediction.ms if place in self.measured_places else prediction.ms + prediction.half_width_ms

    def predicted_keep(self, place: DeviceSetting, structure: Structure) -> float | None:
        """Return the predicted latency divided by the original's; None if the place has no pricer."""
        if place not in self._pricers:
            return None
        ms = self._pricers[place].price([structure, self.original]).ms
        return float(ms[0] / ms[1])


def _budget(request: BudgetRequest, place: DeviceSetting | None) -> Budget:
    device, setting = ("", "") if place is None else (place[0], str(place[1]))
    return Budget(request.metric, request.limit, device, setting, request.statistic)
