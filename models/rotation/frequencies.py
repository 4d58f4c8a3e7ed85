"""The most important frequencies of rotary positions in the heads of one block, in closed form.

A rotary position turns each pair of q/k dims by an angle that grows with the position. Only one kind of map passes
through it: a complex factor for each pair. So the basis inside a head is not free, but one can choose which
frequencies stay, and let a factor for each of them make up for those that go.

q and k are taken behind their rotation. With Q = mean of q q' and K = mean of k k' (k without the mean of its image,
which softmax ignores), the logits q' M k of independent q and k have the mean square tr(M Q M' K). What the logits lose
is this with M = 1 - (the factors of the frequencies that stay). It is quadratic in the factors, so the best ones solve
a linear system. The order is found backwards: the frequency whose absence costs least, over all heads, goes first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-6
"""Ridge of the linear systems, relative to their mean diagonal. Frequencies can be almost equal to each other."""
UNITS = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 0.0]]], dtype=torch.float64)
"""A complex number x + iy as a map of two dims: x times the first matrix, plus y times the second."""


@dataclass(frozen=True)
class FrequencyBasis:
    """The n frequencies of H heads, the most important one first.

    order: (n,), the frequencies of the network. It is the same in all heads, because they share the tables of angles.
    energies: (H, n), the mean square that the logits lose with each frequency.
    factors: (n, H, n, 2), float64. The entry r - 1 holds the factors for the first r frequencies, if only they stay.
    """

    order: Tensor
    energies: Tensor
    factors: Tensor

    def of_rank(self, rank: int) -> Tensor:
        """Return the real and imaginary parts of the factors for the first frequencies, (H, rank, 2)."""
        return self.factors[rank - 1, :, :rank]


def frequency_basis(queries: Tensor, keys: Tensor) -> FrequencyBasis:
    """Return the order of the frequencies, and their factors.

    queries: (H, 2n, 2n), mean of q q' behind the rotation, the two dims of a frequency one after the other. keys: the
    same of k after the mean of each image is taken away.
    """
    products = _products(queries.double(), keys.double())
    heads, count = products.shape[:2]
    order = _backwards(products)
    products = products[:, order][:, :, :, order]
    factors = torch.zeros(count, heads, count, 2, dtype=torch.float64)
    losses = torch.zeros(heads, count + 1, dtype=torch.float64)
    for rank in range(count + 1):
        found, losses[:, rank] = _fit(products, rank)
        if rank > 0:
            factors[rank - 1, :, :rank] = found
    energies = (losses[:, :-1] - losses[:, 1:]).clamp(min=0)
    return FrequencyBasis(order, energies, factors)


def as_maps(factors: Tensor) -> Tensor:
    """Return the maps (H, 2n, 2n) that multiply n pairs of dims by complex factors, (H, n, 2)."""
    turns = torch.einsum("hni,iab->hnab", factors.double(), UNITS)
    return torch.stack([torch.block_diag(*head) for head in turns])


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """Return tr(B_i Q B_j' K) for the maps B that multiply one frequency by 1 or by i, (H, n, 2, n, 2)."""
    heads, dims = queries.shape[:2]
    q, k = (moments.reshape(heads, dims // 2, 2, dims // 2, 2) for moments in (queries, keys))
    return torch.einsum("iab,hfbgc,jdc,hgdfa->hfigj", UNITS, q, UNITS, k)


def _fit(products: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors (H, rank, 2) of the first frequencies, and what the logits lose without the others, (H,)."""
    heads, count = products.shape[:2]
    lost = products[:, rank:, 0, rank:, 0].sum((1, 2))
    one = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(heads, rank, 2)
    if rank in (0, count):
        return one, lost
    wanted = products[:, :rank, :, rank:, 0].sum(-1).reshape(heads, -1)
    more = torch.linalg.solve(_damped(products[:, :rank, :, :rank].reshape(heads, 2 * rank, -1)), wanted)
    return one + more.reshape(heads, rank, 2), (lost - (wanted * more).sum(-1)).clamp(min=0)


def _backwards(products: Tensor) -> Tensor:
    """Return the frequencies in the order of their importance.

    Without the members s of a quadratic form with the inverse A and the solution z, the loss grows by z_s' A_ss^-1 z_s.
    """
    heads, count = products.shape[:2]
    left, gone = list(range(count)), list[int]()
    whole = products[:, :, :, :, 0].sum(3)  # what the frequencies are fitted to: all of them
    while len(left) > 1:
        inverse = torch.linalg.inv(_damped(products[:, left][:, :, :, left].reshape(heads, 2 * len(left), -1)))
        solved = (inverse @ whole[:, left].reshape(heads, -1, 1)).reshape(heads, len(left), 2)
        own = inverse.reshape(heads, len(left), 2, len(left), 2).diagonal(dim1=1, dim2=3).movedim(-1, 1)
        growth = (solved * torch.linalg.solve(own, solved)).sum(-1).sum(0)
        gone.append(left.pop(int(growth.argmin())))
    return torch.tensor([*left, *reversed(gone)])


def _damped(systems: Tensor) -> Tensor:
    """Return symmetric systems (H, m, m) with a ridge."""
    size = systems.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-24)
    return systems + RIDGE * size[:, None, None] * torch.eye(systems.shape[-1], dtype=torch.float64)
