"""Tests of the second rotation, which spreads the energy of an int8 network."""

import copy

import pytest
import torch
from torch import Tensor

from models.networks.network import outputs_of
from models.pruning.spread import can_spread_width, spread, spreading, spreading_width
from models.quantization.int8 import Quantiser
from models.structure import identity
from tests.models.rotation.test_rotate import apart, in_float64, plan_of, rotated
from tests.support.networks import images_for, in_int8, small_network


@pytest.mark.parametrize("size", [1, 2, 7, 16, 30, 64])
def test_it_is_a_rotation_that_mixes_everything(size: int) -> None:
    matrix = spreading(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    assert float(matrix.abs().max()) < (1.01 if size < 4 else 0.95)
    if size == 64:
        assert torch.equal(matrix.abs(), torch.full((64, 64), 0.125, dtype=torch.float64))


def test_the_width_keeps_its_mean() -> None:
    matrix, ones = spreading_width(12), torch.ones(12, dtype=torch.float64)
    torch.testing.assert_close(matrix @ ones, ones)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"num_classes": 0}, {"pre_norm": True}, {"init_values": 0.3}])
def test_a_spread_network_computes_the_same(options: dict[str, object]) -> None:
    turned, _ = rotated(in_float64(**options))
    small = turned.pruned(plan_of(turned, 32, 7, 5), None)
    images = images_for(turned, 5).double()
    assert can_spread_width(small.module)
    module = copy.deepcopy(small.module)
    spread(module, small.family, heads=True, width=True)
    assert apart(outputs_of(module, images), small.outputs(images)) < 1e-9


def test_a_stream_in_its_own_basis_is_not_spread() -> None:
    network = small_network()
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter.add_(0.1)
    small = network.pruned(identity(network.structure), None)
    assert not can_spread_width(small.module) and small.spreads() == ()


def test_int8_rounds_less_away_after_it() -> None:
    """One direction of the stream is a hundred times as strong as the others: alone it takes the range of int8."""
    network = small_network(depth=2)
    module = network.module
    with torch.no_grad():
        strong = torch.randn(48, generator=torch.Generator().manual_seed(3))
        module.pos_embed.add_(100 * (strong - strong.mean()) / strong.norm())  # type: ignore[operator]
    bases = network.bases(images_for(network, 24, seed=1))
    assert bases is not None
    turned = network.rotated(bases)
    small = turned.pruned(in_int8(plan_of(turned, 48, 16, 16)), None).with_quantiser(Quantiser(8))
    images = images_for(network, 16)
    exact = small.exact().outputs(images)
    errors = [error(one.outputs(images), exact) for one in (small, *small.spreads())]
    assert min(errors[1:]) < 0.8 * errors[0]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
