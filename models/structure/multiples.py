"""Multiples to which the sizes of a pruned network are rounded, so that its matrix products stay fast.

Standard library only.
"""

DIM_MULTIPLE, NEURON_MULTIPLE, EMBED_MULTIPLE = 4, 16, 8
"""Multiples for the q/k and v dims per head, for the neurons per block, and for the embedding dims."""


def to_multiple(count: float, size: int, multiple: int, least: int | None = None) -> int:
    """Round `count`, out of `size` members, to a multiple. At least `least` members stay; its default is one multiple.

    All members stay if `count` is `size`, even if `size` is not a multiple.
    """
    least = multiple if least is None else least
    return size if count >= size else min(size, max(least, multiple * round(count / multiple)))
