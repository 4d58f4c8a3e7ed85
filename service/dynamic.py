"""What a dynamic number of tokens costs: a weighted set of static structures, priced once each."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from models.errors import InvalidRequest
from models.structure import Structure

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
