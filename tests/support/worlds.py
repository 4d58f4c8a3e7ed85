"""Rankings and prices without networks, for tests of the search."""

from collections.abc import Sequence

import numpy as np

from models.structure import Structure
from search.loop.decode import Price
from search.ranking import Array, BlockRanking, Ranking
from search.spaces.compact import CompactSpace
from tests.support.networks import small_network

AXES = ("heads", "qk", "v", "neurons", "tokens")


def random_ranking(structure: Structure, seed: int = 0, across_blocks: bool = True) -> Ranking:
    random, blocks = np.random.default_rng(seed), []
    for block in structure.blocks:
        a, mlp = block.attention, block.mlp
        assert a is not None and mlp is not None
        blocks.append(
            BlockRanking(
                random.random(a.heads),
                random.random((a.heads, a.qk_dim)),
                random.random((a.heads, a.v_dim)),
                random.random(mlp.neurons),
            )
        )
    return Ranking("random", tuple(blocks), across_blocks, 0)


def small_space(axes: Sequence[str] = AXES) -> CompactSpace:
    structure = small_network(depth=4).structure
    return CompactSpace(structure, random_ranking(structure), axes)


def macs_keep(space: CompactSpace) -> Price:
    def price(structures: Sequence[Structure]) -> Array:
        return np.asarray([[s.macs / space.structure.macs] for s in structures])

    return price
