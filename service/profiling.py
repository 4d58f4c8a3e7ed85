"""Fits the latency table of a job's network: a handful of plans of it, exported and measured in one interleaved run."""

from collections.abc import Iterator
from pathlib import Path

from latency.devices import cpu_name
from latency.sampling import Interval
from latency.table import Sample, Table, load_table
from models.torch_network import TorchNetwork
from search.policy import Policy, PolicySpace
from service.budgeting import Place, Pricing
from service.verification import PROFILE, Verifier

DEPTHS = (0.45, 0.9)
"""How far along a direction the probes lie: between everything and the smallest network of that direction."""


def profile(
    pricing: Pricing, network: TorchNetwork, space: PolicySpace, verifier: Verifier, tables: Path, work: Path
) -> None:
    """Every measured place gets its table: the job's own from an earlier attempt, the stored one, or one fitted now."""
    tables.mkdir(parents=True, exist_ok=True)
    for place in pricing.measured_places:
        key = (place[0], cpu_name(), place[1], network.structure)
        table = load_table(work, *key) or load_table(tables, *key)
        if table is None:
            table = fit(place, network, space, verifier)
            table.save(tables)
        pricing.set_table(place, table)


def fit(place: Place, network: TorchNetwork, space: PolicySpace, verifier: Verifier) -> Table:
    """Measures the probes. The weights do not matter for time, so nothing is recovered."""
    probes = [(f"probe{i}", network.pruned(space.plan(p), None)) for i, p in enumerate(probe_policies(space))]
    evidence = verifier.measure(probes, place, PROFILE)
    samples = [Sample(network.structure, Interval(1.0, 1.0, 1.0))]
    samples += [Sample(n.structure, e.ratio) for (_, n), e in zip(probes, evidence, strict=True)]
    original_ms = evidence[0].original.p50_ms.value
    return Table(place[0], cpu_name(), place[1], network.structure, original_ms, tuple(samples))


def probe_policies(space: PolicySpace) -> Iterator[Policy]:
    """Each axis alone, then all together at two depths: they span what the search will ask for."""
    kinds = ["tokens" if name.startswith("tokens") else name for name in space.keeps]
    mixes = [0.0] * len(space.mixes)
    for axis in dict.fromkeys(kinds):
        yield space.along([1.0 if kind == axis else 0.0 for kind in kinds] + mixes, DEPTHS[1])
    for depth in DEPTHS:
        yield space.along([1.0] * len(kinds) + mixes, depth)
