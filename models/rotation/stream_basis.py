"""The basis of the residual stream: its principal directions, laid out so that a width is cut by slicing.

LayerNorm only sees a token minus the mean of its dims. So all writers may be made mean-free, and the stream has D - 1
free directions V (D, D - 1), all of them orthogonal to (1, ..., 1): the eigenvectors of the second moments of the
*normalised* stream, summed over all layers that read it, with the largest eigenvalue first.

LayerNorm stays an operator, so the D - 1 directions are laid into D coordinates whose mean is 0: x <- B V' x. B is the
Helmert matrix (`centred_layout`). Its columns are orthonormal and orthogonal to (1, ..., 1), and it is nested: in the
first k coordinates, the columns from k on are constant. A constant is what LayerNorm takes away. So the first k
coordinates of the stream, normalised, hold exactly the first k - 1 principal directions, and a width is cut by keeping
the first k coordinates of every writer and every reader. LayerNorm divides by the root mean square over k coordinates
in the place of D, so its weight becomes (D / k)^1/2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.rotation.head_bases import signs_of


def centred_layout(width: int) -> Tensor:
    """Return the Helmert matrix (D, D - 1), float64. Column j has j + 1 equal entries, then one that balances them."""
    layout = torch.zeros(width, width - 1, dtype=torch.float64)
    for j in range(1, width):
        layout[:j, j - 1] = 1
        layout[j, j - 1] = -j
        layout[:, j - 1] /= (j * (j + 1)) ** 0.5
    return layout


@dataclass(frozen=True)
class StreamBasis:
    """The principal directions of the stream, (D, D - 1), and their energies (D - 1,), falling. Both in float64."""

    directions: Tensor
    energies: Tensor

    @property
    def writer_map(self) -> Tensor:
        """The map (D, D) of everything that is added to the stream: B V'.

        Its transpose, V B', gives a reader of the new normalised stream the old one.
        """
        return centred_layout(len(self.directions)) @ self.directions.T


def stream_basis(moments: Tensor) -> StreamBasis:
    """Return the basis of the stream.

    moments: (D, D), mean of n n' over all tokens and readers, where n is the normalised stream.
    """
    free = centred_layout(len(moments))
    energies, vectors = torch.linalg.eigh(free.T @ moments.double() @ free)
    directions = free @ vectors.flip(1)
    return StreamBasis(directions * signs_of(directions), energies.flip(0).clamp(min=0))
