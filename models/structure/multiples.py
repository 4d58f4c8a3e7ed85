"""Multiples that the sizes of a pruned network keep, so that its products stay fast. Standard library only."""

DIM_MULTIPLE, NEURON_MULTIPLE, EMBED_MULTIPLE = 4, 16, 8
"""Of q/k and v dims per head, of neurons per block, and of embedding dims."""


def to_multiple(count: float, size: int, multiple: int, least: int | None = None) -> int:
    """Rounds `count` members of `size` to a multiple; at least `least` (one multiple, unless it is given) stay.

    All members stay if `count` is `size`, whether or not that is a multiple.
    """
    least = multiple if least is None else least
    return size if count >= size else min(size, max(least, multiple * round(count / multiple)))
