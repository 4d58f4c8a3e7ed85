"""Bases of the q/k dims and of the v dims of one head, in closed form.

Only products of weights matter inside a head, so its basis is free. The bases here are those in which the discarded
dims carry least. Both maps are invertible: a head that keeps all of its dims computes the same as before.

q/k: logits are q . k, and softmax ignores what all keys of an image share. With A = (mean of q q')^1/2 and
B = (mean of k k')^1/2, where k has lost the mean of its image, and A B = U S V', the new rows are
    q <- S^1/2 U' A^-1 q,    k <- S^1/2 V' B^-1 k
Keeping the first r of them is the best approximation of rank r of q . k for independent q and k. It loses the sum of
the other S^2.

v: z is the output of a head, C its covariance, W the columns of the projection that read it. With W C^1/2 = U S V',
    v <- V' C^-1/2 v,    W <- W C^1/2 V
The weights of the attention sum to 1, so a linear map of v is the same map of z. Keeping the first r dims loses the sum
of the other S^2, in the units of the residual stream. The bias of the projection takes up the mean: that is what
models/pruning/recovery.py does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-9
"""Smallest eigenvalue of a moment matrix, relative to its largest one. Below it, rounding errors rule."""


@dataclass(frozen=True)
class PairBasis:
    """The basis of the q/k dims of H heads, in float64.

    queries, keys: (H, d, d), the maps q <- queries q and k <- keys k. energies: (H, d), falling.
    """

    queries: Tensor
    keys: Tensor
    energies: Tensor


@dataclass(frozen=True)
class ValueBasis:
    """The basis of the v dims of H heads, in float64.

    values: (H, d, d), the map v <- values v. inverse: the inverse maps. energies: (H, d), falling.
    """

    values: Tensor
    inverse: Tensor
    energies: Tensor


def pair_basis(queries: Tensor, keys: Tensor) -> PairBasis:
    """Return the basis of the q/k dims.

    queries: (H, d, d), mean of q q'. keys: (H, d, d), mean of k k' after the mean of each image is taken away.
    """
    a, a_inverse = _roots(queries)
    b, b_inverse = _roots(keys)
    left, strengths, right = torch.linalg.svd(a @ b)
    signs, root = signs_of(left), strengths.sqrt().unsqueeze(-1)
    return PairBasis(
        root * (left * signs.unsqueeze(-2)).mT @ a_inverse,
        root * (right * signs.unsqueeze(-1)) @ b_inverse,
        strengths**2,
    )


def value_basis(covariance: Tensor, projection: Tensor) -> ValueBasis:
    """Return the basis of the v dims.

    covariance: (H, d, d), of the outputs of the heads. projection: (D, H d), the weight that reads them.
    """
    root, inverse = _roots(covariance)
    heads, dim = covariance.shape[:2]
    columns = projection.double().reshape(-1, heads, dim).permute(1, 0, 2)
    written = root @ columns.mT @ columns @ root  # (H, d, d): what the dims write, after C^1/2
    energies, vectors = torch.linalg.eigh(written)
    vectors = vectors.flip(-1)
    vectors = vectors * signs_of(vectors).unsqueeze(-2)
    return ValueBasis(vectors.mT @ inverse, root @ vectors, energies.flip(-1).clamp(min=0))


def signs_of(columns: Tensor) -> Tensor:
    """Return the signs (..., n) that make the largest entry of each column of (..., m, n) positive.

    Singular vectors have no sign of their own. The same job must give the same file, so the sign is fixed.
    """
    largest = columns.abs().argmax(-2, keepdim=True)
    signs = columns.gather(-2, largest).squeeze(-2).sign()
    return torch.where(signs == 0, torch.ones_like(signs), signs)


def _roots(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square roots of moment matrices, and the inverse ones.

    Small eigenvalues are raised to a floor, so both are exact inverses of each other.
    """
    values, vectors = torch.linalg.eigh(moments.double())
    floor = (FLOOR * values[..., -1:]).clamp(min=1e-24)
    values = torch.maximum(values, floor).sqrt().unsqueeze(-2)
    return (vectors * values) @ vectors.mT, (vectors / values) @ vectors.mT
