"""Export candidates for the CPU, and measure them beside the original, which is exported in the same way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from latency.measuring.footprint import footprint
from latency.measuring.machine_lock import Tell, silent
from latency.measuring.meter import Effort
from latency.measuring.remote import meter_of
from latency.measuring.sampling import Interval, Measurement, bootstrap, ratio
from latency.prediction.sizes import SizeLine
from latency.prediction.table import Sample
from models.export.onnx_store import bytes_of
from models.networks.dynamic_tokens import export_dynamic
from models.networks.network import Network
from models.networks.torch_network import of_known_family
from models.structure import Structure
from search.budgets import Budget
from service.pipeline.pricing import DeviceSetting, Pricing, SizeKey

FOOTPRINTS = 3
"""Number of processes in which the memory of a file is measured. The largest result counts."""
VERIFY = Effort(seconds=10.0, width=0.02, processes=4, rounds=10)
PROFILE = Effort(seconds=16.0, width=0.04, processes=4, rounds=4)
"""Effort for about 24 files at once. It may be lower for each file, because the fit averages their errors."""
AXES = Effort(seconds=6.0, width=0.02, processes=2, rounds=4)
"""Effort for the few files that a report compares."""


@dataclass(frozen=True)
class Evidence:
    """The measurements of one file and of the original, at one place (a device with a setting)."""

    place: DeviceSetting
    original: Measurement
    candidate: Measurement

    @property
    def ratio(self) -> Interval:
        return ratio(self.candidate, self.original)

    def upper(self, budget: Budget) -> float:
        """Return the upper end of the interval of the value that a latency budget limits."""
        if budget.metric == "latency_keep":
            return ratio(self.candidate, self.original, budget.statistic).high
        return bootstrap(self.candidate.round_medians, budget.statistic).high


@dataclass(frozen=True)
class Verdict:
    """Whether a network meets the budgets.

    shares: for each label of a budget, the upper end of the measured or predicted interval divided by the limit. The
    budgets are met if every share is at most 1. over_images: measurements of the dynamic form.
    """

    evidence: tuple[Evidence, ...]
    shares: dict[str, float]
    over_images: tuple[Evidence, ...] = ()

    @property
    def met(self) -> bool:
        return all(share <= 1 for share in self.shares.values())

    @property
    def fullest(self) -> float:
        return max(self.shares.values(), default=0.0)


class Verifier:
    """Exports and measures networks. It keeps the files in `work`, so it exports a network once for each batch size."""

    def __init__(self, original: Network, pricing: Pricing, work: Path, seed: int, *, tell: Tell = silent) -> None:
        """tell: is told what is measured, and when the measurement waits for another one."""
        self._original, self._pricing, self._work, self._seed = original, pricing, work, seed
        self.tell = tell

    def file(self, network: Network, name: str, batch: int) -> Path:
        path = self._work / f"{name}-b{batch}.onnx"
        if not path.exists():
            network.export(path, batch, "cpu")
        return path

    def measure(
        self, networks: Sequence[tuple[str, Network]], place: DeviceSetting, effort: Effort, *, what: str | None = None
    ) -> list[Evidence]:
        """Measure networks interleaved with the original, in the same processes. Return one `Evidence` for each.

        networks: pairs of name and network. what: names the networks in progress notes; None: by their names.
        """
        files = [self.file(network, name, place[1].batch) for name, network in networks]
        return self.measure_files(files, place, effort, what=what or ", ".join(name for name, _ in networks))

    def measure_files(
        self, files: Sequence[Path], place: DeviceSetting, effort: Effort, *, what: str
    ) -> list[Evidence]:
        """Measure files that `file` has written, in the same way as `measure`."""
        original = self.file(self._original, "original", place[1].batch)
        found = meter_of(*place).measure([original, *files], effort, self._seed, what=what, tell=self.tell)
        return [Evidence(place, found[0], candidate) for candidate in found[1:]]

    def judge(self, name: str, network: Network, images: Tensor | None = None, *, what: str | None = None) -> Verdict:
        """Measure a network wherever this is possible, correct the prices, and compare the network with every budget.

        images (n, C, H, W): images over which the dynamic form of the network is measured too. Without them, the
        prediction for the static form is compared with the budgets over images. what: names the network in progress
        notes; None: by its name.
        """
        evidence = []
        for place in self._pricing.measured_places:
            (found,) = self.measure([(name, network)], place, VERIFY, what=what)
            sample = Sample(network.structure, found.ratio)
            self._pricing.correct(place, [sample], found.original.p50_ms.value)
            self._keep_table(place)
            evidence.append(found)
        for key in self._pricing.size_keys:
            self._pricing.set_line(key, self._line(key).with_sample(network.structure, self.weigh(key, name, network)))
        over_images = () if images is None else tuple(self._over_images(name, network, images))
        return Verdict(tuple(evidence), self._shares(network.structure, evidence, over_images), over_images)

    def _over_images(self, name: str, network: Network, images: Tensor) -> Iterator[Evidence]:
        """Measure the dynamic form beside the original. Both run the same image, one after the other."""
        network = of_known_family(network, "the dynamic form")
        file, inputs = self._work / f"{name}-{network.threshold:g}-dynamic.onnx", self._work / "images.npy"
        if not file.exists():
            export_dynamic(network, file)
        np.save(inputs, images.numpy())
        requests = zip(self._pricing.requests, self._pricing.places, strict=True)
        for place in dict.fromkeys(place for request, place in requests if request.over_images):
            if place in self._pricing.measured_places:
                files = [self.file(self._original, "original", 1), file]
                original, candidate = meter_of(*place).measure(
                    files, VERIFY, self._seed, inputs, what=f"{name} over images", tell=self.tell
                )
                yield Evidence(place, original, candidate)

    def weigh(self, key: SizeKey, name: str, network: Network) -> float:
        """Return the size of the exported file, or the peak growth in memory, in bytes."""
        quantity, setting = key
        file = self.file(network, name, setting.batch)
        if quantity == "file":
            return float(bytes_of(file))
        peaks = []
        for number in range(FOOTPRINTS):
            self.tell(f"measuring the memory of {name}, process {number + 1} of {FOOTPRINTS}")
            peaks.append(footprint(file, setting, self.tell).peak_mib)
        return max(peaks) * 2**20

    def _line(self, key: SizeKey) -> SizeLine:
        line = self._pricing.line(key)
        assert line is not None, "profiling comes first"
        return line

    def _keep_table(self, place: DeviceSetting) -> None:
        """Store the corrected latency table, so that a resumed job can continue with it."""
        table = self._pricing.table(place)
        if table is not None:
            table.save(self._work)

    def _shares(
        self, structure: Structure, evidence: Sequence[Evidence], over_images: Sequence[Evidence]
    ) -> dict[str, float]:
        static, dynamic = ({found.place: found for found in some} for some in (evidence, over_images))
        predicted = self._pricing.price([structure])[0]  # the measurements have already corrected these prices
        shares = {}
        for i, (budget, place) in enumerate(zip(self._pricing.budgets.items, self._pricing.places, strict=True)):
            cost = float(predicted[i])
            measured = dynamic if budget.statistic != "p50" else static
            if place in measured:
                cost = measured[place].upper(budget)
            shares[budget.label] = cost / budget.limit
        return shares
