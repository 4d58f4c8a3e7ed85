"""The dynamic form of a network with selectors: its file, and what its number of tokens costs over images."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from models.dynamic import check_dynamic, export_dynamic, kept_distribution, structure_of
from models.errors import InvalidRequest, ParityFailure
from models.masked_tokens import selectors_of
from models.structure import Structure
from models.torch_network import TorchNetwork
from service.budgeting import Pricing

FILE = "model.dynamic-tokens.onnx"

PriceMs = Callable[[Sequence[Structure]], Sequence[float]]
"""Milliseconds of each structure, all in one batch."""


def dynamic_latency(structures: Sequence[Structure], price: PriceMs) -> tuple[float, float]:
    """Mean and p95, in ms, over images of which each runs through one of `structures`.

    p95 is the nearest rank: the smallest latency that at least 95 % of the images do not exceed. Equal structures are
    priced once. Raises: InvalidRequest without images.
    """
    if not structures:
        raise InvalidRequest("The latency over images needs at least one image; there are none")
    shares = Counter(structures)
    different = list(shares)
    priced = sorted(zip((float(ms) for ms in price(different)), (shares[s] for s in different), strict=True))
    mean = sum(ms * count for ms, count in priced) / len(structures)
    left = math.ceil(0.95 * len(structures))
    for ms, count in priced:
        left -= count
        if left <= 0:
            return mean, ms
    raise AssertionError("the shares add up to all images")


def deliver_dynamic(
    network: TorchNetwork, pricing: Pricing, images: Tensor, unseen: Tensor, folder: Path
) -> dict[str, Any] | None:
    """Writes the dynamic form and describes it; None for a network without selectors.

    images: for the distribution of tokens and the predicted latencies (calibration); unseen: for parity.
    Raises: ParityFailure when ONNX Runtime disagrees with PyTorch.
    """
    if not selectors_of(network.module) or network.plan is None:
        return None
    export_dynamic(network, folder / FILE)
    parity = check_dynamic(network, folder / FILE, unseen)
    if not parity.passed:
        raise ParityFailure(
            f"ONNX Runtime disagrees with PyTorch about {FILE} on {len(unseen)} images: by {parity.max_relative:.2e} "
            f"(allowed: 1e-3), with other tokens in {parity.other_counts}. Nothing was delivered; please report it.",
            parity=parity.to_json(),
        )
    kept = kept_distribution(network, images)
    structures = [structure_of(network.plan, pricing.original, row) for row in kept.tolist()]
    latencies = []
    for place in dict.fromkeys(place for place in pricing.places if place is not None):
        mean, p95 = dynamic_latency(structures, lambda some, place=place: list(pricing.upper_ms(place, some)))  # type: ignore[misc]
        latencies.append({"device": place[0], "setting": str(place[1]), "mean_ms": mean, "p95_ms": p95})
    return {
        "file": FILE,
        "parity": parity.to_json(),
        "images": len(images),
        "kept_tokens": [
            {"mean": float(s.double().mean()), "least": int(s.min()), "most": int(s.max())} for s in kept.T
        ],
        "macs_mean": sum(structure.macs for structure in structures) / len(structures),
        "predicted": latencies,
    }
