"""Deliver the dynamic form of a network with token selectors, and describe its costs over images.

In the dynamic form, the number of tokens depends on the image. Token selectors are trained to keep a given share of the
tokens on average. A budget may limit the mean or the 95th percentile of the latency over images. The job then raises
the threshold of the dynamic form until the budget holds: first by prediction, and then by measurement.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from vitfit.report import DynamicParity, DynamicTokens, KeptTokens, MeasuredOverImages, PredictedOverImages

from latency.measuring.sampling import Statistic, bootstrap, ratio
from models.errors import InvalidRequest, ParityFailure
from models.networks.dynamic_tokens import check_dynamic, export_dynamic, kept_distribution, structure_of
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork, of_known_family
from models.structure import Structure
from models.training.masked_blocks import selectors_of
from service.pipeline.pricing import DeviceSetting, Pricing
from service.pipeline.verification import Evidence

FILE = "model.dynamic-tokens.onnx"

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99, 0.995, 0.999)
"""The thresholds that are tried, in ascending order. The selectors were trained with 0.5."""
OVER_IMAGES: tuple[Statistic, ...] = ("mean", "p95")
PriceMs = Callable[[Sequence[Structure]], Sequence[float]]
"""A function that returns the latency of each structure in ms."""


def dynamic_latency(structures: Sequence[Structure], price: PriceMs) -> tuple[float, float]:
    """Return the mean and the 95th percentile (p95) of the latency over images, in ms.

    p95 is the smallest latency that at least 95 % of the images do not exceed (nearest rank).

    structures: one for each image; equal structures are priced only once. price: returns the latencies of structures.

    Raises: InvalidRequest when there are no images.
    """
    if not structures:
        raise InvalidRequest("The latency over images needs at least one image, but there are none. Add images.")
    shares = Counter(structures)
    different = list(shares)
    priced = sorted(zip((float(ms) for ms in price(different)), (shares[s] for s in different), strict=True))
    mean = sum(ms * count for ms, count in priced) / len(structures)
    left = math.ceil(0.95 * len(structures))
    for ms, count in priced:
        left -= count
        if left <= 0:
            return mean, ms
    raise AssertionError("unreachable: the counts add up to the number of images")


def predicted_shares(network: TorchNetwork, pricing: Pricing, images: Tensor) -> dict[str, float]:
    """Return the predicted cost divided by the limit, for each budget over images, by the label of the budget."""
    assert network.plan is not None
    kept = kept_distribution(network, images)
    structures = [structure_of(network.plan, pricing.original, row) for row in kept.tolist()]
    shares = {}
    for request, budget, place in zip(pricing.requests, pricing.budgets.items, pricing.places, strict=True):
        if request.over_images and place is not None:
            mean, p95 = _priced(structures, pricing, place)
            whole = pricing.upper_ms(place, [pricing.original])[0] if budget.metric == "latency_keep" else 1.0
            shares[budget.label] = float((mean if request.statistic == "mean" else p95) / whole / budget.limit)
    return shares


def _priced(structures: Sequence[Structure], pricing: Pricing, place: DeviceSetting) -> tuple[float, float]:
    return dynamic_latency(structures, lambda some: list(pricing.upper_ms(place, some)))


def with_threshold(network: TorchNetwork, pricing: Pricing, images: Tensor, above: float = 0.0) -> TorchNetwork:
    """Return the network with the lowest threshold above `above` whose predictions meet the budgets over images.

    If no threshold meets them, the result has the highest threshold. If no threshold is above `above`, the result is
    the network itself.

    images: images of the calibration split.
    """
    found = network
    for threshold in THRESHOLDS:
        if threshold > above:
            found = network.with_threshold(threshold)
            if max(predicted_shares(found, pricing, images).values(), default=0.0) <= 1 - pricing.safety:
                break
    return found


def deliver_dynamic(
    network: Network,
    pricing: Pricing,
    folder: Path,
    *,
    images: Tensor,
    unseen: Tensor,
    evidence: Sequence[Evidence] = (),
) -> DynamicTokens | None:
    """Write the dynamic form to `folder`, and return its description. Return None for a network without selectors.

    images: calibration images for the number of kept tokens and the predicted latencies. unseen: test images for the
    parity check. evidence: the measured latencies over images.

    Raises: ParityFailure when ONNX Runtime disagrees with PyTorch.
    """
    if not selectors_of(network.module):
        return None
    network = of_known_family(network, "the dynamic form")
    export_dynamic(network, folder / FILE)
    parity = check_dynamic(network, folder / FILE, unseen)
    if not parity.passed:
        raise ParityFailure(
            f"The parity check of {FILE} failed on {len(unseen)} images. The outputs of ONNX Runtime and PyTorch "
            f"differ by {parity.max_relative:.2e} of the largest output (allowed: 1e-3), and {parity.other_counts} "
            "images keep another number of tokens. Nothing was delivered. Please report this defect.",
            parity=parity.to_json(),
        )
    kept = kept_distribution(network, images)
    assert network.plan is not None
    structures = [structure_of(network.plan, pricing.original, row) for row in kept.tolist()]
    latencies = []
    for place in dict.fromkeys(place for place in pricing.places if place is not None):
        mean, p95 = _priced(structures, pricing, place)
        latencies.append(PredictedOverImages(device=place[0], setting=str(place[1]), mean_ms=mean, p95_ms=p95))
    return DynamicTokens(
        file=FILE,
        threshold=network.threshold,
        parity=DynamicParity.from_json(parity.to_json()),
        images=len(images),
        kept_tokens=tuple(
            KeptTokens(mean=float(counts.double().mean()), least=int(counts.min()), most=int(counts.max()))
            for counts in kept.T
        ),
        macs_mean=sum(structure.macs for structure in structures) / len(structures),
        predicted=tuple(latencies),
        measured=tuple(_measured(found) for found in evidence),
    )


def _measured(found: Evidence) -> MeasuredOverImages:
    """Return the measured mean and p95 over images, with the ratios to the original's latency on the same images."""
    row: dict[str, Any] = {"device": found.place[0], "setting": str(found.place[1])}
    for statistic in OVER_IMAGES:
        row[f"{statistic}_ms"] = bootstrap(found.candidate.round_medians, statistic).to_json()
        row[f"{statistic}_ratio"] = ratio(found.candidate, found.original, statistic).to_json()
    return MeasuredOverImages.from_json(row)
