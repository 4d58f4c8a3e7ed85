"""Fit the latency table of a job's network: export about 24 random plans, and measure them interleaved in one run.

A table with which a budget seems impossible is measured a second time before the job is told so.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from latency.devices.devices import machine_of
from latency.measuring.sampling import Interval
from latency.prediction.probes import probe_plans
from latency.prediction.sizes import SizeLine, Weighed, known_bytes
from latency.prediction.table import Sample, Table, load_table
from models.atomic_write import write_whole
from models.networks.network import Network
from models.structure import Precision
from service.pipeline.pricing import DeviceSetting, Pricing, SizeKey
from service.pipeline.verification import PROFILE, Verifier

Costs = Callable[[], Sequence[float]]
"""Returns the costs of the smallest network by the present tables, one for each budget."""


def profile(
    pricing: Pricing,
    network: Network,
    verifier: Verifier,
    tables: Path,
    *,
    work: Path,
    precisions: Sequence[Precision] = ("fp32",),
    saved: Callable[[], None] = lambda: None,
) -> None:
    """Set the latency table of every measured place, and the size line of every limited size.

    A table comes from an earlier attempt of the job, or else from the shared folder. If neither has it, it is fitted
    now. The probes are measured in fp32, like the original, and then in each other precision of the job.

    saved: called whenever a new table or size line is stored.
    """
    tables.mkdir(parents=True, exist_ok=True)
    for place in pricing.measured_places:
        key = (place[0], machine_of(place[0]), place[1], network.structure)
        table = load_table(work, *key) or load_table(tables, *key)
        if table is None:
            table = fit(place, network, verifier)
            table.save(tables)
            saved()
        for precision in precisions:
            if not table.knows(precision):
                table = table.corrected(measure_probes(place, network, verifier, precision)[0])
                table.save(tables)
                saved()
        pricing.set_table(place, table)
    for size_key in pricing.size_keys:
        known = line_file(size_key, work).exists()
        pricing.set_line(size_key, weigh(size_key, network, verifier, work))
        if not known:
            saved()
    delete_probes(work)  # only now, because places with the same batch size share them


def line_file(key: SizeKey, work: Path) -> Path:
    """Return the path of a stored size line."""
    quantity, setting = key
    return work / f"{quantity}-{setting.key}.json"


def delete_probes(work: Path) -> None:
    """Delete the exported files of the probes."""
    for file in work.glob("probe*.onnx*"):
        file.unlink()


def weigh(key: SizeKey, network: Network, verifier: Verifier, work: Path) -> SizeLine:
    """Return the size line through the original and one small probe.

    The line of an earlier attempt is reused if there is one.
    """
    (quantity, setting), stored = key, line_file(key, work)
    if stored.exists():
        return SizeLine.from_json(json.loads(stored.read_text()))
    small = network.pruned(next(iter(probe_plans(network.structure))), None)
    original = Weighed(
        known_bytes(quantity, network.structure, setting.batch), verifier.weigh(key, "original", network)
    )
    line = SizeLine(quantity, setting.batch, (original,)).with_sample(
        small.structure, verifier.weigh(key, "probe0", small)
    )
    write_whole(stored, json.dumps(line.to_json()))
    return line


def fit(place: DeviceSetting, network: Network, verifier: Verifier) -> Table:
    """Measure the probes in fp32, and return the fitted latency table."""
    samples, original_ms = measure_probes(place, network, verifier, "fp32")
    samples = [Sample(network.structure, Interval(1.0, 1.0, 1.0)), *samples]
    return Table(place[0], machine_of(place[0]), place[1], network.structure, original_ms, tuple(samples))


def measure_probes(
    place: DeviceSetting, network: Network, verifier: Verifier, precision: Precision
) -> tuple[list[Sample], float]:
    """Measure the probes, and return their samples and the original's latency in ms.

    The weights do not change the latency, so nothing is ranked or recovered.
    """
    probes = []
    plans = list(probe_plans(network.structure, precision=precision))
    for number, plan in enumerate(plans):
        verifier.tell(f"exporting smaller network {number + 1} of {len(plans)}")
        pruned = network.pruned(plan, None)  # the next turn replaces it, so memory holds only one pruned network
        name = f"probe{number}" if precision == "fp32" else f"probe{number}-{precision}"
        probes.append((pruned.structure, verifier.file(pruned, name, place[1].batch)))
    what = f"{len(probes)} smaller networks in {precision}"
    evidence = verifier.measure_files([file for _, file in probes], place, PROFILE, what=what)
    samples = [Sample(structure, e.ratio) for (structure, _), e in zip(probes, evidence, strict=True)]
    return samples, evidence[0].original.p50_ms.value


def measure_again(
    pricing: Pricing,
    network: Network,
    verifier: Verifier,
    tables: Path,
    *,
    work: Path,
    least_costs: Costs,
    precisions: Sequence[Precision],
) -> None:
    """Measure every device again on which the smallest network exceeds a budget, and use the better of both tables.

    The better table is the one with which the smallest network costs less. It is stored for this job and for later
    jobs. A table may be wrong because other programs used the machine while it was measured, perhaps weeks ago.
    Measurements always run in new processes.
    """
    for place in exceeded(pricing, least_costs()):
        before, cost = pricing.table(place), _cost(pricing, place, least_costs)
        table = fit(place, network, verifier)
        for precision in precisions:
            if not table.knows(precision):
                table = table.corrected(measure_probes(place, network, verifier, precision)[0])
        pricing.set_table(place, table)
        if before is not None and _cost(pricing, place, least_costs) >= cost:
            pricing.set_table(place, before)
            continue
        for folder in (tables, work):
            table.save(folder)
    delete_probes(work)


def exceeded(pricing: Pricing, costs: Sequence[float]) -> list[DeviceSetting]:
    """Return the measured places on which these costs exceed a budget."""
    rows = zip(costs, pricing.aims.items, pricing.places, strict=True)
    over = [place for cost, aim, place in rows if place is not None and cost > aim.limit]
    return [place for place in pricing.measured_places if place in over]


def _cost(pricing: Pricing, place: DeviceSetting, least_costs: Costs) -> float:
    """Return the largest share of a budget of this place that the smallest network uses."""
    rows = zip(least_costs(), pricing.aims.items, pricing.places, strict=True)
    return max(cost / aim.limit for cost, aim, where in rows if where == place)
