"""Tests of the latency over images when the number of tokens is dynamic."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from models.errors import InvalidRequest
from models.networks.dynamic_tokens import kept_distribution, structure_of
from models.structure import Structure
from service.jobs.job_request import JobRequest
from service.pipeline.dynamic_tokens import THRESHOLDS, dynamic_latency, predicted_shares, with_threshold
from service.pipeline.pricing import Pricing
from tests.models.networks.test_dynamic_tokens import dynamic
from tests.models.pruning.test_token_selector import selecting
from tests.support.networks import images_for, small_network


def by_macs(structures: Sequence[Structure]) -> list[float]:
    assert len(set(structures)) == len(structures), "each is priced once"
    return [structure.macs / 1e6 for structure in structures]


def test_mean_and_p95_over_images() -> None:
    """Of 100 images, 90 are cheap, 5 are expensive and 5 are between them.

    By nearest rank, the 95th percentile is one of the 5 between them.
    """
    network, original = selecting(small_network()), small_network().structure
    assert network.plan is not None
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
    assert network.plan is not None
    structures = [structure_of(network.plan, original, row) for row in kept.tolist()]
    mean, p95 = dynamic_latency(structures, by_macs)
    costs = [structure.macs / 1e6 for structure in structures]
    assert min(costs) < mean < p95 == max(costs)


def test_no_images_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one image"):
        dynamic_latency([], by_macs)


def limited(statistic: str, limit: float) -> Pricing:
    budget = {"metric": "latency_keep", "limit": limit, "device": "generic-mobile", "statistic": statistic}
    request = JobRequest.model_validate({"model": "m", "dataset": "d", "method": "spvit", "budgets": [budget]})
    return Pricing(request, small_network().structure)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["mean", "p95"])
def test_the_lowest_threshold_within_the_budget_is_taken(statistic: str) -> None:
    network = dynamic()
    images = images_for(network, 12)

    def share(threshold: float, pricing: Pricing) -> float:
        (found,) = predicted_shares(network.with_threshold(threshold), pricing, images).values()
        return found

    one = limited(statistic, 1.0)
    costs = [share(threshold, one) for threshold in THRESHOLDS]
    assert costs[0] > costs[-1], "a higher threshold keeps fewer tokens"
    limit = (costs[0] + costs[-1]) / 2
    pricing = limited(statistic, limit)
    chosen = with_threshold(network, pricing, images).threshold
    fits = [t for t, cost in zip(THRESHOLDS, costs, strict=True) if cost / limit <= 1 - pricing.safety]
    assert chosen == min(fits) > 0.5
    assert with_threshold(network, pricing, images, above=chosen).threshold > chosen
    assert network.threshold == 0.5
    last = with_threshold(network, limited(statistic, 1e-6), images)
    assert last.threshold == THRESHOLDS[-1], "nothing fits: as few tokens as there can be"
    assert with_threshold(last, pricing, images, above=last.threshold).threshold == THRESHOLDS[-1]


def test_p95_is_never_cheaper_than_the_mean_of_like_images() -> None:
    network = dynamic()
    images = images_for(network, 12)
    mean, p95 = (next(iter(predicted_shares(network, limited(s, 0.9), images).values())) for s in ("mean", "p95"))
    assert 0 < mean <= p95


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "joint"}, "method 'spvit'"),
        ({"budgets": [{"metric": "macs", "limit": 1e6, "statistic": "mean"}]}, "single images"),
        (
            {"budgets": [{"metric": "latency_ms", "limit": 1, "statistic": "p95", "setting": {"batch": 2}}]},
            "single images",
        ),
    ],
)
def test_a_statistic_over_images_is_refused_where_it_means_nothing(change: dict[str, Any], words: str) -> None:
    fine = {"metric": "latency_keep", "limit": 0.7, "statistic": "mean"}
    document = {"model": "m", "dataset": "d", "method": "spvit", "budgets": [fine]}
    assert JobRequest.model_validate(document).budgets[0].over_images
    with pytest.raises(ValueError, match=words):
        JobRequest.model_validate(document | change)
