"""The latency of a dynamic number of tokens over images."""

from collections.abc import Sequence

import numpy as np
import pytest

from models.dynamic import kept_distribution, structure_of
from models.errors import InvalidRequest
from models.structure import Structure
from service.dynamic import dynamic_latency
from tests.models.networks import images_for, small_network
from tests.models.test_dynamic import dynamic
from tests.models.test_selector import selecting


def by_macs(structures: Sequence[Structure]) -> list[float]:
    assert len(set(structures)) == len(structures), "each is priced once"
    return [structure.macs / 1e6 for structure in structures]


def test_mean_and_p95_over_images() -> None:
    """100 images: 90 cheap, 5 dear, 5 in between; the nearest rank of 95 % is the one in between."""
    network, original = selecting(small_network()), small_network().structure
    cheap, middle, dear = (structure_of(network.plan, original, kept) for kept in ([9, 2], [20, 9], [36, 30]))
    images = [cheap] * 45 + [dear] * 5 + [middle] * 5 + [cheap] * 45
    mean, p95 = dynamic_latency(images, by_macs)
    every = np.array([structure.macs / 1e6 for structure in images])
    assert mean == pytest.approx(every.mean())
    assert p95 == pytest.approx(middle.macs / 1e6)
    assert dynamic_latency([cheap], by_macs) == (cheap.macs / 1e6,) * 2
    assert dynamic_latency([*images, dear], by_macs)[1] == pytest.approx(dear.macs / 1e6)


def test_from_a_network_and_images_to_latencies() -> None:
    network, original = dynamic(), small_network().structure
    kept = kept_distribution(network, images_for(network, 6))
    structures = [structure_of(network.plan, original, row) for row in kept.tolist()]
    mean, p95 = dynamic_latency(structures, by_macs)
    costs = [structure.macs / 1e6 for structure in structures]
    assert min(costs) < mean < p95 == max(costs)


def test_no_images_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one image"):
        dynamic_latency([], by_macs)
