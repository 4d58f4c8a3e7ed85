"""Tests of intervals from samples: values computed by hand, and the effect of the spread between processes."""

from typing import Any

import numpy as np
import pytest

from latency.devices.setting import Setting
from latency.measuring.sampling import Interval, Measurement, bootstrap, ratio


def measurement(samples: Any, threads: int = 1) -> Measurement:
    return Measurement(
        "cpu", "test", Setting(threads), tuple(tuple((value,) for value in rounds) for rounds in samples)
    )


def test_a_median_with_its_interval() -> None:
    found = bootstrap([np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])])
    assert found.value == 2.0 and 1.0 <= found.low <= 2.0 <= found.high <= 3.0


def test_more_samples_narrow_the_interval() -> None:
    random = np.random.default_rng(0)
    few, many = (bootstrap([random.normal(10, 1, n) for _ in range(3)]) for n in (20, 2000))
    assert many.width < few.width / 3


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, hits = np.random.default_rng(1), 0
    for _ in range(100):
        shifts = random.normal(0, 0.2, 6)
        found = bootstrap([random.normal(10 + shift, 0.5, 50) for shift in shifts])
        hits += found.low <= 10 <= found.high
    assert hits >= 85


def test_processes_that_disagree_widen_the_interval() -> None:
    agree = bootstrap([np.full(50, 1.0), np.full(50, 1.0), np.full(50, 1.0)])
    disagree = bootstrap([np.full(50, 0.9), np.full(50, 1.0), np.full(50, 1.1)])
    assert agree.width == 0 and disagree.width > 0.1


def test_a_ratio_is_taken_round_by_round_so_drift_cancels() -> None:
    drift = np.linspace(1, 3, 40)
    found = ratio(measurement([list(0.6 * drift)]), measurement([list(drift)]))
    assert found.value == pytest.approx(0.6) and found.width < 1e-9


def test_measurements_in_different_settings_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="the same setting"):
        ratio(measurement([[1.0]], threads=1), measurement([[1.0]], threads=2))


def test_equal_samples_give_equal_intervals() -> None:
    samples = [np.random.default_rng(2).random(30) for _ in range(2)]
    assert bootstrap(samples) == bootstrap(samples)


def test_a_measurement_keeps_every_sample_in_json() -> None:
    found = measurement([[1.0, 2.0], [3.0, 4.0]])
    assert Measurement.from_json(found.to_json()) == found and found.count == 4
    assert Interval.from_json(Interval(1, 0.9, 1.1).to_json()).width == pytest.approx(0.2)


def test_mean_and_p95_over_rounds() -> None:
    """Measure with twenty rounds, one of which is slow.

    The 95th percentile by nearest rank is the 19th of twenty rounds, which is fast. Of ten rounds it is the 10th, which
    is slow.
    """
    rounds = np.array([1.0] * 19 + [21.0])
    assert bootstrap([rounds], "mean").value == pytest.approx(2.0)
    assert bootstrap([rounds], "p95").value == 1.0
    assert bootstrap([rounds[10:]], "p95").value == 21.0
    original, candidate = measurement([[2.0] * 20]), measurement([(2 * rounds).tolist()])
    assert ratio(candidate, original, "mean").value == pytest.approx(2.0)


def test_rounds_with_a_busy_neighbour_do_not_count_where_there_are_others() -> None:
    """A busy neighbour makes the large network twice as slow and the small network one and a half times as slow."""
    random = np.random.default_rng(3)
    busy = random.random((6, 40)) < 0.45
    noise = random.normal(1, 0.01, (2, 6, 40))
    large, small = 2.0 * np.where(busy, 2.0, 1.0) * noise[0], 1.0 * np.where(busy, 1.5, 1.0) * noise[1]
    found = ratio(measurement(small), measurement(large))
    assert found.value == pytest.approx(0.5, rel=0.01) and found.width < 0.02
    always = ratio(
        measurement(1.5 * small[:, :1] * np.ones((6, 40))), measurement(2.0 * large[:, :1] * np.ones((6, 40)))
    )
    assert 0.2 < always.value < 0.6, "where all rounds are disturbed, all count"
