"""Fits the latency table of a job's network: a handful of plans of it, exported and measured in one interleaved run."""

from collections.abc import Iterator
from pathlib import Path

from latency.devices import cpu_name
from latency.sampling import Interval
from latency.table import Sample, Table, load_table
from models.plan import Plan
from models.structure import Structure
from models.torch_network import TorchNetwork
from search.ranking import unranked
from search.spaces.compact import CompactSpace
from service.budgeting import Place, Pricing
from service.verification import PROFILE, Verifier

PROBE_AXES = ("heads", "qk", "v", "neurons", "tokens")
DEPTHS = (0.45, 0.9)
"""How far along a direction the probes lie: between everything and the smallest network of that direction."""


def profile(pricing: Pricing, network: TorchNetwork, verifier: Verifier, tables: Path, work: Path) -> None:
    """Every measured place gets its table: the job's own from an earlier attempt, the stored one, or one fitted now."""
    tables.mkdir(parents=True, exist_ok=True)
    for place in pricing.measured_places:
        key = (place[0], cpu_name(), place[1], network.structure)
        table = load_table(work, *key) or load_table(tables, *key)
        if table is None:
            table = fit(place, network, verifier)
            table.save(tables)
        pricing.set_table(place, table)


def fit(place: Place, network: TorchNetwork, verifier: Verifier) -> Table:
    """Measures the probes. The weights do not matter for time, so nothing is ranked or recovered."""
    plans = probe_plans(network.structure)
    probes = [(f"probe{i}", network.pruned(plan, None)) for i, plan in enumerate(plans)]
    evidence = verifier.measure(probes, place, PROFILE)
    samples = [Sample(network.structure, Interval(1.0, 1.0, 1.0))]
    samples += [Sample(n.structure, e.ratio) for (_, n), e in zip(probes, evidence, strict=True)]
    original_ms = evidence[0].original.p50_ms.value
    return Table(place[0], cpu_name(), place[1], network.structure, original_ms, tuple(samples))


def probe_plans(structure: Structure) -> Iterator[Plan]:
    """Each axis alone, then all together at two depths: they span what any method will ask for, so that the jobs of all
    methods share one table."""
    space = CompactSpace(structure, unranked(structure), PROBE_AXES)
    kinds = ["tokens" if name.startswith("tokens") else name for name in space.dimensions]
    for axis in dict.fromkeys(kinds):
        yield space.plan(space.along([1.0 if kind == axis else 0.0 for kind in kinds], DEPTHS[1]))
    for depth in DEPTHS:
        yield space.plan(space.along([1.0] * len(kinds), depth))
