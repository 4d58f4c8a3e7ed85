"""The members of one axis over all blocks, and how many of each block stay."""

from collections.abc import Sequence

import numpy as np

from models.structure.multiples import to_multiple
from search.ranking import Array
from search.spaces.best_members import best


class Pool:
    def __init__(self, blocks: Sequence[Array], least: int, multiple: int = 1) -> None:
        """blocks: scores of each block's members. least: minimum count in a block. multiple: of all counts."""
        self._blocks, self._least, self._multiple = blocks, least, multiple
        self._within = np.concatenate([_ranks(scores) for scores in blocks])
        self._over_all = _ranks(np.concatenate(blocks))
        self._owner = np.repeat(np.arange(len(blocks)), [len(scores) for scores in blocks])

    def counts(self, keep: float, mix: float) -> list[int]:
        """Number of members kept in each block, if the share `keep` of all members stays.

        The best stay, by the rank within the block (weight 1 - mix) plus the rank over all blocks (weight mix).
        """
        sizes = [len(scores) for scores in self._blocks]
        total = max(1, round(keep * sum(sizes)))
        merged = (1 - mix) * self._within + (mix + 1e-6) * self._over_all  # 1e-6 breaks ties
        top = np.argpartition(-merged, total - 1)[:total]
        found = np.bincount(self._owner[top], minlength=len(sizes))
        return [self.rounded(int(n), size) for n, size in zip(found, sizes, strict=True)]

    def counts_by_block(self, keeps: Sequence[float]) -> list[int]:
        """Number of members kept in each block, if every block has its own keep ratio."""
        sizes = [len(scores) for scores in self._blocks]
        return [self.rounded(round(keep * size), size) for keep, size in zip(keeps, sizes, strict=True)]

    def members(self, counts: Sequence[int]) -> list[tuple[int, ...]]:
        """Indices of the best members of each block in ascending order; counts: how many of each block."""
        return [best(scores, count) for scores, count in zip(self._blocks, counts, strict=True)]

    def rounded(self, count: int, size: int) -> int:
        """`count` rounded to the multiple of the axis, but at least the minimum and at most `size`."""
        return to_multiple(count, size, self._multiple, self._least)


def _ranks(scores: Array) -> Array:
    """Ranks in (0, 1]; the best score has rank 1. Of equal scores the one with the lower index ranks higher."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = 1 - np.arange(len(scores)) / len(scores)
    return ranks
