"""Tests of rotated networks with stages."""

import dataclasses

import pytest
from torch import Tensor

from models.evaluation.metrics import agreement
from models.networks.torch_network import TorchNetwork
from models.structure import HeadPlan, Plan, RotatedAxis, identity
from tests.support.families import small_family
from tests.support.networks import images_for

ALL: tuple[RotatedAxis, ...] = ("qk", "v", "embed")
ROTATABLE: dict[str, tuple[RotatedAxis, ...]] = {
    "pvt_v2": ALL,
    "pvt_v2, oblong image": ALL,
    "pvt_v2, linear": ALL,
    "pit": ALL,
    "pit, distilled": ALL,
    "swin": ("embed",),
    "swin, padded windows": ("embed",),
}


def half_of_the_dims(network: TorchNetwork) -> Plan:
    """Return the plan that keeps the first half of the q/k dims and of the v dims of every head."""

    def halved(head: HeadPlan) -> HeadPlan:
        return HeadPlan(head.qk[: len(head.qk) // 2], head.v[: len(head.v) // 2])

    whole = identity(network.structure)
    blocks = tuple(dataclasses.replace(block, heads=tuple(map(halved, block.heads))) for block in whole.blocks)
    return dataclasses.replace(whole, blocks=blocks)


def rotated(network: TorchNetwork, images: Tensor) -> TorchNetwork:
    bases = network.bases(images)
    assert bases is not None
    return network.rotated(bases)


@pytest.mark.parametrize("variant", ROTATABLE)
def test_at_full_rank_it_is_the_same_network(variant: str) -> None:
    network = small_family(variant)
    network = network.with_module(network.module.double())
    assert network.rotatable == ROTATABLE[variant]
    images = images_for(network, 6).double()
    found, wanted = rotated(network, images).outputs(images), network.outputs(images)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-9


@pytest.mark.parametrize("variant", ["pvt_v2", "pit"])
def test_half_of_the_dims_is_worth_more_in_rotated_bases(variant: str) -> None:
    network = small_family(variant)
    images, unseen = images_for(network, 48, seed=1), images_for(network, 32, seed=2)
    turned = rotated(network, images)
    losses = [
        agreement(network.outputs(unseen), one.pruned(half_of_the_dims(one), one.statistics(images)).outputs(unseen))
        for one in (turned, network)
    ]
    assert losses[0] > 0.85 * losses[1]
