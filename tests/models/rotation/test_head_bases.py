"""Tests of the bases of heads, against explicit products and planted ranks."""

import pytest
import torch
from torch import Tensor

from models.rotation.head_bases import PairBasis, pair_basis, signs_of, value_basis


def moments_of(rows: Tensor) -> Tensor:
    """Return the second moments of rows (H, n, d)."""
    return rows.mT @ rows / rows.shape[1]


def rows(seed: int, rank: int | None = None, dims: int = 6) -> Tensor:
    """Return rows (2, 400, 6) with unequal variances; all lie in a subspace of `rank` dims."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2, rank or dims, dims, generator=draw, dtype=torch.float64)
    return torch.randn(2, 400, rank or dims, generator=draw, dtype=torch.float64) @ mixing


def cut_logits(q: Tensor, k: Tensor, basis: PairBasis, rank: int) -> Tensor:
    """Return the logits (H, n, n) of the first `rank` directions."""
    q, k = (rows @ maps[:, :rank].mT for rows, maps in ((q, basis.queries), (k, basis.keys)))
    return q @ k.mT


def test_all_directions_give_the_same_logits() -> None:
    q, k = rows(0), rows(1)
    basis = pair_basis(moments_of(q), moments_of(k))
    assert torch.allclose(cut_logits(q, k, basis, 6), q @ k.mT, rtol=0, atol=1e-9 * float((q @ k.mT).abs().max()))


def test_the_lost_logits_are_the_discarded_energies() -> None:
    """For independent q and k, the mean square of what the logits lose is the sum of the discarded energies."""
    q, k = rows(0), rows(1)
    basis = pair_basis(moments_of(q), moments_of(k))
    for rank in (1, 3, 5):
        lost = ((cut_logits(q, k, basis, rank) - q @ k.mT) ** 2).mean((1, 2))
        assert torch.allclose(lost, basis.energies[:, rank:].sum(1), rtol=1e-6)


def test_no_choice_of_dims_loses_less_than_the_basis() -> None:
    q, k = rows(0), rows(1)
    basis = pair_basis(moments_of(q), moments_of(k))
    lost = basis.energies[:, 3:].sum(1)
    for kept in torch.combinations(torch.arange(6), 3):
        chosen = q[..., kept] @ k[..., kept].mT
        assert bool((((chosen - q @ k.mT) ** 2).mean((1, 2)) > lost).all())


def test_planted_ranks_are_found() -> None:
    q, k = rows(0, rank=2), rows(1)
    basis = pair_basis(moments_of(q), moments_of(k))
    assert bool((basis.energies[:, 2:] < 1e-7 * basis.energies[:, :1]).all())
    assert torch.allclose(cut_logits(q, k, basis, 2), q @ k.mT, rtol=0, atol=1e-4 * float((q @ k.mT).abs().max()))


def test_the_values_keep_what_the_projection_writes_most() -> None:
    z = rows(2)
    z = z - z.mean(1, keepdim=True)
    projection = torch.randn(8, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    basis = value_basis(moments_of(z), projection)
    for head in range(2):
        columns = projection[:, head * 6 : (head + 1) * 6]
        whole = z[head] @ columns.T
        for rank in (2, 6):
            cut = z[head] @ basis.values[head, :rank].T @ (columns @ basis.inverse[head])[:, :rank].T
            lost = ((cut - whole) ** 2).sum(1).mean()
            assert lost == pytest.approx(float(basis.energies[head, rank:].sum()), rel=1e-6, abs=1e-9)


def test_signs_make_the_largest_entry_positive() -> None:
    columns = torch.tensor([[1.0, -3.0, 0.0], [-2.0, 1.0, 0.0]])
    assert signs_of(columns).tolist() == [-1.0, -1.0, 1.0]
    assert signs_of(torch.stack([columns, -columns])).tolist() == [[-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_keys_give_no_energy(value: float) -> None:
    """Keys that do not differ inside an image change no attention. The maps stay finite."""
    q, k = rows(0), torch.full((2, 400, 6), value, dtype=torch.float64)
    k = k - k.mean(1, keepdim=True)
    basis = pair_basis(moments_of(q), moments_of(k))
    assert bool(torch.isfinite(basis.queries).all()) and bool(torch.isfinite(basis.keys).all())
    assert float(basis.energies.max()) < 1e-12
