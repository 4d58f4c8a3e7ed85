"""Tests of remembered fits: they change nothing but the time."""

import dataclasses

import pytest
import torch
from torch import Tensor

from models.pruning import recovery
from models.structure import Plan, identity
from tests.support.networks import images_for, random_plan, small_network


def fewer_neurons(plan: Plan, block: int) -> Plan:
    blocks = list(plan.blocks)
    blocks[block] = dataclasses.replace(blocks[block], neurons=blocks[block].neurons[:-16])
    return dataclasses.replace(plan, blocks=tuple(blocks))


def test_a_network_after_others_is_the_same_network() -> None:
    network, fresh = small_network(), small_network()
    images = images_for(network, 32)
    statistics = network.statistics(images)
    plan = random_plan(network.structure, seed=4, tokens=False)
    for other in (plan, fewer_neurons(plan, 1), random_plan(network.structure, seed=5, tokens=False)):
        network.pruned(other, statistics)
    expected = fresh.pruned(plan, statistics).outputs(images)
    torch.testing.assert_close(network.pruned(plan, statistics).outputs(images), expected, rtol=0, atol=0)


def test_statistics_of_other_images_are_not_mixed_up() -> None:
    network = small_network()
    images = images_for(network, 64)
    plan = random_plan(network.structure, seed=4, tokens=False)
    first, second = (network.pruned(plan, network.statistics(part)).outputs(images) for part in images.split(32))
    assert not torch.equal(first, second)


def test_only_the_block_that_differs_is_fitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Tensor] = []
    solve = recovery.ridge_solution

    def counted(covariance: Tensor, target: Tensor, current: Tensor, ridge: float) -> Tensor:
        fitted.append(covariance)
        return solve(covariance, target, current, ridge)

    monkeypatch.setattr(recovery, "ridge_solution", counted)
    network = small_network()
    statistics = network.statistics(images_for(network, 32))
    whole = identity(network.structure)
    half = [dataclasses.replace(block, neurons=block.neurons[::2]) for block in whole.blocks]
    plan = dataclasses.replace(whole, blocks=tuple(half))
    network.pruned(plan, statistics)
    assert len(fitted) == len(half)
    network.pruned(fewer_neurons(plan, 2), statistics)
    assert len(fitted) == len(half) + 1
