"""The best members of an axis by their scores."""

import numpy as np

from search.ranking import Array


def best(scores: Array, count: int) -> tuple[int, ...]:
    """Indices of the `count` highest scores in ascending order. Of equal scores the lower index is better."""
    return tuple(int(i) for i in np.sort(np.argsort(-scores, kind="stable")[:count]))
