"""The fitted latency model of one network on one device in one setting.

    ratio(s) = [sum_f c_f x_f(s)] * exp(g(s)),     ms(s) = original_ms * ratio(s)

x_f are sums over operations (`latency.prediction.features`). c_f >= 0 are fitted to two dozen measured structures
(`latency.prediction.probes`) by ridge regression towards the known costs of a server core (non-negative least squares
on relative errors). g is a Gaussian process on the remaining errors, over the costs c_f x_f, so that a structure near a
measured one is predicted as that one was measured. The fit uses ratios to the original: structure and original were
measured interleaved, so drift of the machine cancels.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from latency.devices.setting import Setting
from latency.measuring.sampling import Interval
from latency.prediction.features import PRIOR_NS, features
from latency.prediction.pricer import Array, Prediction
from models.atomic_write import write_whole
from models.record import Record
from models.structure import Precision, Structure

PRIOR_STRENGTH, PRIOR_FLOOR = 0.05, 0.01
"""PRIOR_STRENGTH: relative error that one measured structure must show to move a coefficient by its whole size, or by
PRIOR_FLOOR, a share of the original's latency, if that is more. Small coefficients need the floor: weights that no
cache holds cost twenty times what they cost elsewhere."""
RESIDUAL_SCALES, RESIDUAL_LENGTHS = (0.05, 0.03), (0.4, 0.06)
"""Scales and lengths of the two parts of g. Scale: how far the sum over operations may be off. Length: the change in
the features' costs over which structures share this error. The short part lets a measurement overrule the probes around
it."""
SAMPLE_NOISE, EXACT = 0.004, 1e-4
UNEXPLAINED, NOISE_SHARE = 0.012, 0.4
"""UNEXPLAINED: irreducible relative error, because no sample tells how the tensors of another structure lie in memory.
NOISE_SHARE: error of the measurement with which a prediction is compared, as a share of the width of the samples'
intervals. Where neighbours use the cache, this noise does not average out: it has changed by the time of that
measurement."""
Z90 = 1.645
PROBES = "probes5"
"""Version of the probes in the name of a stored table. A table of another version is not found but fitted again."""


@dataclass(frozen=True)
class Sample(Record):
    """One measured structure. ratio: its latency divided by the original's."""

    structure: Structure
    ratio: Interval


@dataclass(frozen=True)
class Table(Record):
    """The samples of one network on one device. A table is stored under its device, machine, setting and original.

    A job has a copy of its own, to which its verification adds measurements.
    """

    device: str
    machine: str
    setting: Setting
    original: Structure
    original_ms: float
    samples: tuple[Sample, ...]

    def knows(self, precision: Precision) -> bool:
        """True if there are networks of this precision among the samples."""
        return any(block.precision == precision for sample in self.samples for block in sample.structure.blocks)

    @property
    def name(self) -> str:
        """File name of the stored table."""
        parts = (self.device, self.machine, self.setting.key, self.original.key)
        return table_name(*parts)

    def corrected(self, samples: Sequence[Sample], original_ms: float | None = None) -> "Table":
        """A table with more samples, and with the original's latency as it was measured together with them."""
        ms = self.original_ms if original_ms is None else original_ms
        return dataclasses.replace(self, samples=self.samples + tuple(samples), original_ms=ms)

    def save(self, folder: Path) -> None:
        write_whole(folder / self.name, json.dumps(self.to_json()))


def table_name(device: str, machine: str, setting_key: str, structure_key: str) -> str:
    plain = "".join(c if c.isalnum() else "-" for c in machine.lower())
    return f"{device}-{plain}-{setting_key}-{structure_key}-{PROBES}.json"


def load_table(  # noqa: PLR0917  called with a tuple of its arguments
    folder: Path, device: str, machine: str, setting: Setting, original: Structure
) -> Table | None:
    path = folder / table_name(device, machine, setting.key, original.key)
    return Table.from_json(json.loads(path.read_text())) if path.exists() else None


class TablePricer:
    """Prices structures by a table. It never changes: when the table grows, a new pricer is built."""

    def __init__(self, table: Table) -> None:
        self.table, self.device, self.setting = table, table.device, table.setting
        raw, y = features([s.structure for s in table.samples]), _ratios(table.samples)
        self._scale = np.maximum(raw.max(axis=0), 1.0)
        x = raw / self._scale
        self._coefficients = _fit(x, y, self._scale)
        widths = [sample.ratio.width for sample in table.samples]
        self._residual = self._fit_residual(x, y, widths)
        self._unexplained = float(np.hypot(UNEXPLAINED, NOISE_SHARE * np.median([w for w in widths if w] or [0.0])))

    def price(self, structures: Sequence[Structure]) -> Prediction:
        ratios, spread = self._ratios(structures)
        ms = self.table.original_ms * ratios
        return Prediction(ms, Z90 * spread * ms, f"table {self.table.name}, {len(self.table.samples)} samples")

    def _ratios(self, structures: Sequence[Structure]) -> tuple[Array, Array]:
        """Ratios to the original (the original's own ratio is exactly 1), and relative standard deviations."""
        costs = self._normalised(structures) * self._coefficients
        shift, spread = self._residual.predict(costs, return_std=True)
        return np.asarray(costs.sum(axis=1) * np.exp(shift)), np.hypot(spread, self._unexplained)

    def _normalised(self, structures: Sequence[Structure]) -> Array:
        return np.asarray(features(structures) / self._scale)

    def _fit_residual(self, x: Array, y: Array, widths: list[float]) -> GaussianProcessRegressor:
        """Fit g with fixed hyper-parameters, because two dozen samples cannot choose them.

        The original's own ratio is 1 by definition. The sum may be wrong there, at the end of the range, but this says
        nothing about the other structures, so they are not scaled by it.
        """
        wide, narrow = (
            ConstantKernel(scale**2, "fixed") * RBF(length, "fixed")
            for scale, length in zip(RESIDUAL_SCALES, RESIDUAL_LENGTHS, strict=True)
        )
        noise = np.asarray([SAMPLE_NOISE**2 + (width / 4) ** 2 if width else EXACT**2 for width in widths])
        costs = x * self._coefficients
        process = GaussianProcessRegressor(wide + narrow, alpha=noise, optimizer=None)
        return process.fit(costs, np.log(y / costs.sum(axis=1)))


def _ratios(samples: Sequence[Sample]) -> Array:
    return np.asarray([sample.ratio.value for sample in samples])


def _fit(x: Array, y: Array, scale: Array) -> Array:
    """The c >= 0 that minimises |(x c - y) / y|^2 + PRIOR_STRENGTH^2 |(c - c0) / max(c0, PRIOR_FLOOR)|^2.

    c0 are the known costs, scaled to the speed of this device.
    """
    prior = np.asarray(list(PRIOR_NS.values())) * scale
    prior *= np.median(y / (x @ prior))
    pull = PRIOR_STRENGTH / np.maximum(prior, PRIOR_FLOOR)
    rows = np.vstack([x / y[:, None], np.diag(pull)])
    target = np.concatenate([np.ones(len(y)), pull * prior])
    coefficients: Array = nnls(rows, target)[0]
    return coefficients
