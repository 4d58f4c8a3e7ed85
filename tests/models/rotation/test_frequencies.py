"""Tests of the choice of rotary frequencies, on moments of q and k behind their rotation."""

import torch
from torch import Tensor

from models.rotation.frequencies import as_maps, frequency_basis

HEADS, COUNT, SAMPLES = 2, 5, 4000


def drawn(seed: int) -> Tensor:
    """Return q or k of some tokens, (SAMPLES, H, 2 COUNT), whose dims depend on each other."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(HEADS, 2 * COUNT, 2 * COUNT, generator=draw, dtype=torch.float64)
    values = torch.randn(SAMPLES, HEADS, 2 * COUNT, generator=draw, dtype=torch.float64)
    return torch.einsum("nhi,hij->nhj", values, mixed)


def moments(x: Tensor) -> Tensor:
    return torch.einsum("nhi,nhj->hij", x, x) / len(x)


def lost(q: Tensor, k: Tensor, factors: Tensor) -> Tensor:
    """Return what the logits of all pairs of q and k lose on average, (H,). factors: (H, n, 2), 0 for those that go."""
    changed = torch.einsum("hij,nhj->nhi", torch.eye(2 * COUNT, dtype=torch.float64) - as_maps(factors), q)
    return torch.einsum("hij,hji->h", moments(changed), moments(k))


def test_with_all_frequencies_nothing_changes() -> None:
    basis = frequency_basis(moments(drawn(0)), moments(drawn(1)))
    assert sorted(basis.order.tolist()) == list(range(COUNT))
    assert torch.equal(basis.of_rank(COUNT)[..., 0], torch.ones(HEADS, COUNT, dtype=torch.float64))
    assert not basis.of_rank(COUNT)[..., 1].any()


def test_no_other_factors_lose_less() -> None:
    q, k = drawn(0), drawn(1)
    basis = frequency_basis(moments(q), moments(k))
    factors = torch.zeros(HEADS, COUNT, 2, dtype=torch.float64)
    factors[:, basis.order[:3]] = basis.of_rank(3)
    best = lost(q, k, factors)
    torch.testing.assert_close(best, basis.energies[:, 3:].sum(1), rtol=1e-3, atol=0.0)
    for place in basis.order[:3].tolist():
        for part in (0, 1):
            for step in (-0.02, 0.02):
                moved = factors.clone()
                moved[:, place, part] += step
                assert bool((lost(q, k, moved) > best).all())


def test_the_frequency_that_costs_least_goes_first() -> None:
    q, k = drawn(0), drawn(1)
    basis = frequency_basis(moments(q), moments(k))
    costs = []
    for gone in range(COUNT):
        order = [place for place in range(COUNT) if place != gone] + [gone]
        dims = [2 * place + part for place in order for part in (0, 1)]
        moved = frequency_basis_in_order(q[..., dims], k[..., dims])
        costs.append(float(moved.sum()))
    assert basis.order[-1] == min(range(COUNT), key=costs.__getitem__)


def frequency_basis_in_order(q: Tensor, k: Tensor) -> Tensor:
    """Return what the logits lose without the last frequency, by least squares on the products themselves."""
    found = []
    for head in range(HEADS):
        pairs_q, pairs_k = (x[:300, head].reshape(-1, COUNT, 2) for x in (q, k))
        same = torch.einsum("nfa,mfa->nmf", pairs_q, pairs_k)
        crossed = torch.einsum("nf,mf->nmf", pairs_q[..., 0], pairs_k[..., 1]) - torch.einsum(
            "nf,mf->nmf", pairs_q[..., 1], pairs_k[..., 0]
        )
        seen = torch.cat([same[..., :-1], crossed[..., :-1]], -1).flatten(0, 1)
        wanted = same.sum(-1).flatten()
        fitted = seen @ torch.linalg.lstsq(seen, wanted).solution
        found.append((wanted - fitted).square().mean())
    return torch.stack(found)


def test_a_frequency_that_repeats_another_is_made_up_for() -> None:
    """The fourth frequency of q and k is the first one, turned and scaled: a factor of the first replaces it."""
    q, k = drawn(0), drawn(1)
    turn_q, turn_k = (
        torch.polar(torch.tensor(0.8), torch.tensor(0.4)),
        torch.polar(torch.tensor(0.5), torch.tensor(1.1)),
    )
    for x, turn in ((q, turn_q), (k, turn_k)):
        pairs = torch.view_as_complex(x.reshape(SAMPLES, HEADS, COUNT, 2).contiguous())
        x[..., 6:8] = torch.view_as_real(pairs[..., 0] * turn.to(torch.complex128))
    basis = frequency_basis(moments(q), moments(k))
    assert basis.order[-1] in (0, 3)
    assert bool((basis.energies[:, -1] < 1e-4 * basis.energies[:, 0]).all())
    stays = basis.order[:-1].tolist().index(3 if basis.order[-1] == 0 else 0)
    assert bool((basis.of_rank(COUNT - 1)[:, stays] - torch.tensor([1.0, 0.0])).abs().max() > 0.05)
