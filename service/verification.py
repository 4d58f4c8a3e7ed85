"""Exports candidates and measures them beside the original, which has had the same export and optimisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latency.meter import Effort, Meter
from latency.sampling import Interval, Measurement, ratio
from latency.table import Sample
from models.structure import Structure
from models.torch_network import TorchNetwork
from service.budgeting import Place, Pricing

VERIFY = Effort(seconds=10.0, width=0.02, processes=4, rounds=10)
PROFILE = Effort(seconds=6.0, width=0.02, processes=2, rounds=4)


@dataclass(frozen=True)
class Evidence:
    """One file beside the original at one place."""

    place: Place
    original: Measurement
    candidate: Measurement

    @property
    def ratio(self) -> Interval:
        return ratio(self.candidate, self.original)


@dataclass(frozen=True)
class Verdict:
    """`shares`: upper end of the measured interval over the limit, per budget; all at most 1: the budgets are met."""

    evidence: tuple[Evidence, ...]
    shares: dict[str, float]

    @property
    def met(self) -> bool:
        return all(share <= 1 for share in self.shares.values())

    @property
    def fullest(self) -> float:
        return max(self.shares.values(), default=0.0)


class Verifier:
    """Keeps exported files in `work`: a structure of one trial is exported once per batch size."""

    def __init__(self, original: TorchNetwork, pricing: Pricing, work: Path, seed: int) -> None:
        self._original, self._pricing, self._work, self._seed = original, pricing, work, seed

    def file(self, network: TorchNetwork, name: str, batch: int) -> Path:
        path = self._work / f"{name}-b{batch}.onnx"
        if not path.exists():
            network.export(path, batch)
        return path

    def measure(self, networks: Sequence[tuple[str, TorchNetwork]], place: Place, effort: Effort) -> list[Evidence]:
        """One piece of evidence per (name, network), all interleaved with the original in the same processes."""
        setting = place[1]
        pairs = [("original", self._original), *networks]
        files = [self.file(network, name, setting.batch) for name, network in pairs]
        found = Meter(setting).measure(files, effort, self._seed)
        return [Evidence(place, found[0], candidate) for candidate in found[1:]]

    def judge(self, name: str, network: TorchNetwork) -> Verdict:
        """Measures wherever that is possible and compares with every budget; corrects the prices by what it saw."""
        evidence = []
        for place in self._pricing.measured_places:
            (found,) = self.measure([(name, network)], place, VERIFY)
            sample = Sample(network.structure, found.ratio)
            self._pricing.correct(place, [sample], found.original.p50_ms.value)
            self._keep_table(place)
            evidence.append(found)
        return Verdict(tuple(evidence), self._shares(network.structure, evidence))

    def _keep_table(self, place: Place) -> None:
        """A resumed job goes on with what this one has learnt."""
        table = self._pricing.table(place)
        if table is not None:
            table.save(self._work)

    def _shares(self, structure: Structure, evidence: Sequence[Evidence]) -> dict[str, float]:
        by_place = {found.place: found for found in evidence}
        predicted = self._pricing.price([structure])[0]
        shares = {}
        for i, (budget, place) in enumerate(zip(self._pricing.budgets.items, self._pricing.places, strict=True)):
            cost = float(predicted[i])
            if place in by_place:
                found = by_place[place]
                cost = found.ratio.high if budget.metric == "latency_keep" else found.candidate.p50_ms.high
            shares[budget.label] = cost / budget.limit
        return shares
