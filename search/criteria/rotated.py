"""Scores of the members of a rotated network: the first direction of a basis always comes first.

In a rotated basis there is nothing to choose, only how many directions stay. The energies of models/rotation are the
exact loss for each direction, so they replace the scores of the criterion for these axes.
"""

import dataclasses

import numpy as np
from torch import Tensor

from models.rotation.bases import Bases
from search.ranking import Array, Ranking


def with_bases(ranking: Ranking, bases: Bases | None) -> Ranking:
    """Return the ranking of a network in rotated bases. None: the network is in its own bases."""
    if bases is None:
        return ranking
    blocks = []
    for block, found in zip(ranking.blocks, bases.blocks, strict=True):
        qk = block.qk if found.qk_energies is None else _falling(found.qk_energies)
        v = block.v if found.v is None else _falling(found.v.energies)
        blocks.append(dataclasses.replace(block, qk=qk, v=v))
    embed = ranking.embed
    if bases.streams:  # one more coordinate than directions: it balances the mean, so it always stays
        falling = [_falling(stream.energies) for stream in bases.streams]
        embed = np.concatenate([part for energies in falling for part in (energies[:1], energies)])
    return dataclasses.replace(ranking, blocks=tuple(blocks), embed=embed, rotated=bases.axes)


def _falling(energies: Tensor) -> Array:
    """Return energies (..., d) that never rise, whatever rounding did to the smallest of them."""
    return np.asarray(np.minimum.accumulate(energies.double().numpy(), axis=-1))
