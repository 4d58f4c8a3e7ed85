"""Compute intervals from raw samples. Samples are [process][round][run], taken in turn with those of the original.

A round is a short burst of runs. Only its median is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from latency.devices.setting import Setting
from models.record import Record

RESAMPLES = 1000
CONFIDENCE = 0.95
DISTURBED, LEAST_ROUNDS, LEAST_PROCESSES = 1.2, 3, 2
"""A round that took more than DISTURBED times as long as the quickest tenth of all rounds was disturbed by a neighbour.
Only the other rounds count, if LEAST_PROCESSES processes have at least LEAST_ROUNDS of them each."""
Samples = tuple[tuple[tuple[float, ...], ...], ...]
Statistic = Literal["p50", "mean", "p95"]
Reduce = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
STATISTICS: dict[Statistic, Reduce] = {
    "p50": lambda rounds: np.asarray(np.median(rounds, axis=1)),
    "mean": lambda rounds: np.asarray(rounds.mean(axis=1)),
    "p95": lambda rounds: np.asarray(np.quantile(rounds, 0.95, axis=1, method="inverted_cdf")),
}
"""(n, rounds) -> (n,). p95 is the nearest rank: the smallest value that at least 95 % of the rounds do not exceed."""


@dataclass(frozen=True)
class Interval(Record):
    """A value, usually a median, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Width of the whole interval, relative to the value."""
        return (self.high - self.low) / self.value


@dataclass(frozen=True)
class Measurement(Record):
    """Raw samples in ms per run, by process, with device and setting. Predictions have a type of their own."""

    device: str
    machine: str
    setting: Setting
    samples_ms: Samples

    @property
    def p50_ms(self) -> Interval:
        return bootstrap(self.round_medians)

    @property
    def round_medians(self) -> list[npt.NDArray[np.float64]]:
        """Medians of the rounds in ms, one array per process."""
        return [np.median(np.asarray(rounds), axis=1) for rounds in self.samples_ms]

    def percentile_ms(self, share: float) -> float | None:
        """A percentile of the single runs of all processes together. None if there are too few runs to know it: at
        least ten must lie beyond it."""
        if self.count * (1 - share) < 10 - 1e-9:
            return None
        runs = [run for rounds in self.samples_ms for burst in rounds for run in burst]
        return float(np.quantile(runs, share, method="inverted_cdf"))

    @property
    def count(self) -> int:
        """Number of runs that were timed."""
        return sum(len(burst) for rounds in self.samples_ms for burst in rounds)


def ratio(candidate: Measurement, original: Measurement, statistic: Statistic = "p50") -> Interval:
    """Median (or another statistic) over the rounds of candidate / original.

    The two ran within milliseconds of each other, so drift cancels. The median uses only undisturbed rounds if there
    are enough of them, because a busy neighbour slows a large network more than a small one.

    Raises: ValueError when the two were not measured in the same rounds.
    """
    if candidate.setting != original.setting or candidate.device != original.device:
        raise ValueError("Two measurements can be compared only if both have the same device and the same setting")
    mine, other = candidate.round_medians, original.round_medians
    ratios = [a / b for a, b in zip(mine, other, strict=True)]
    calm = [a & b for a, b in zip(_undisturbed(mine), _undisturbed(other), strict=True)]
    kept = [values[rounds] for values, rounds in zip(ratios, calm, strict=True) if rounds.sum() >= LEAST_ROUNDS]
    enough = statistic == "p50" and len(kept) >= LEAST_PROCESSES
    return bootstrap(kept if enough else ratios, statistic)


def _undisturbed(processes: list[npt.NDArray[np.float64]]) -> list[npt.NDArray[np.bool_]]:
    """Masks of the rounds that did not take much longer than the quickest tenth of all rounds."""
    limit = DISTURBED * np.quantile(np.concatenate(processes), 0.1)
    return [rounds <= limit for rounds in processes]


def bootstrap(processes: list[npt.NDArray[np.float64]], statistic: Statistic = "p50") -> Interval:
    """Median over the processes of each process's median (or another statistic of its rounds), with its interval.

    The interval resamples on two levels: processes, then the rounds inside each. Resampling on one level would treat
    the spread between processes (memory layout) as zero. The seed is fixed, so equal samples give equal intervals.
    """
    random, reduce = np.random.default_rng(0), STATISTICS[statistic]
    medians = np.stack([_resampled(rounds, random, reduce) for rounds in processes])
    chosen = random.integers(len(processes), size=(RESAMPLES, len(processes)))
    values = np.median(medians[chosen, np.arange(RESAMPLES)[:, None]], axis=1)
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.median([reduce(rounds[None])[0] for rounds in processes])), float(low), float(high))


def _resampled(rounds: npt.NDArray[np.float64], random: np.random.Generator, reduce: Reduce) -> npt.NDArray[np.float64]:
    picks = random.integers(len(rounds), size=(RESAMPLES, len(rounds)))
    return reduce(rounds[picks])
