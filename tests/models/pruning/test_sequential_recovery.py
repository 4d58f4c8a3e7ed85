"""Tests of sequential recovery.

It solves normal equations on the inputs that really reach a layer. It matches each token with the same token of the
original. It refuses networks that it cannot recover.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from models.networks.torch_network import TorchNetwork
from models.structure import Plan, Reducer, ReductionPoint, TokenPlan, identity
from tests.support.families import small_family
from tests.support.networks import VARIANTS, images_for, random_plan, small_network


def error(network: TorchNetwork, dense: Tensor, images: Tensor) -> float:
    return float((network.outputs(images) - dense).square().mean())


def gain(network: TorchNetwork, plan: Plan, count: int = 128) -> float:
    """Return the error after sequential recovery, divided by the error after recovery, both on other images.

    count: number of images for the fits.
    """
    images = images_for(network, 192)
    pruned = network.pruned(plan, network.statistics(images[:128]))
    again = pruned.recovered_in_sequence(network, images[:count])
    dense = network.outputs(images[128:])
    return error(again, dense, images[128:]) / error(pruned, dense, images[128:])


@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
def test_errors_of_earlier_blocks_are_made_good(options: dict[str, Any]) -> None:
    network = small_network(**options)
    assert gain(network, random_plan(network.structure, seed=4, tokens=False)) < 0.97


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_few_images_do_no_harm(count: int) -> None:
    """A small ridge would follow these images, and spoil the answers for all others (a factor of 2 and more)."""
    network = small_network()
    assert gain(network, random_plan(network.structure, seed=4, tokens=False), count) < 1.1


@pytest.mark.parametrize("reducer", ["drop", "fuse", "weighted"])
@pytest.mark.parametrize("at", ["start", "middle"])
def test_tokens_are_matched_with_their_own(reducer: Reducer, at: ReductionPoint) -> None:
    """If tokens were matched with other tokens, the fit would pull each output towards the wrong target."""
    network = small_network()
    whole = identity(network.structure)
    kept = TokenPlan(20, reducer, at, "cumulative" if at == "start" else "attention")
    blocks = [dataclasses.replace(block, neurons=block.neurons[::2]) for block in whole.blocks]
    blocks[1] = dataclasses.replace(blocks[1], tokens=kept)
    blocks[2] = dataclasses.replace(blocks[2], tokens=dataclasses.replace(kept, kept=10))
    assert gain(network, Plan(whole.embed, tuple(blocks))) < 0.9


def test_a_narrower_stream_and_lost_halves() -> None:
    network = small_network()
    whole = identity(network.structure)
    first = dataclasses.replace(whole.blocks[1], heads=())
    second = dataclasses.replace(whole.blocks[2], neurons=())
    plan = Plan(tuple(range(40)), (whole.blocks[0], first, second, whole.blocks[3]))
    assert gain(network, plan) < 0.6


def test_the_classifier_is_fitted_to_what_it_reads_now() -> None:
    """The classifier was turned away by hand. Nothing but a fit of the classifier itself can bring it back."""
    network = small_network()
    images = images_for(network, 192)
    plan = random_plan(network.structure, seed=4, tokens=False)
    pruned = network.pruned(plan, network.statistics(images))
    head = pruned.module.head
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.bias.add_(1.0)
        head.weight.mul_(0.5)
    dense = network.outputs(images)
    assert error(pruned.recovered_in_sequence(network, images), dense, images) < 0.5 * error(pruned, dense, images)


def test_what_is_left_over_has_nothing_to_do_with_the_inputs() -> None:
    """Check the normal equations of fc2 in the last block, on the pruned network's own residual stream."""
    network = small_network(init_values=0.5)
    images = images_for(network, 64)
    plan = random_plan(network.structure, seed=3, tokens=False)
    pruned = network.pruned(plan, network.statistics(images))

    def correlation(small: TorchNetwork) -> float:
        last = small.pruned_blocks()[-1]
        assert last.mlp is not None
        seen: list[Tensor] = []
        hooks = [last.mlp.fc2.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))]
        hooks.append(last.register_forward_hook(lambda _m, _i, output: seen.append(_stream(output))))
        small.outputs(images)
        whole: list[Tensor] = []
        hooks.append(network.blocks()[-1].register_forward_hook(lambda _m, _i, output: whole.append(output)))
        network.outputs(images)
        for hook in hooks:
            hook.remove()
        inputs, rest = seen[0].flatten(0, 1), (whole[0] - seen[1]).flatten(0, 1)
        inputs, rest = inputs - inputs.mean(0), rest - rest.mean(0)
        return float((inputs.T @ rest).norm() / (inputs.norm() * rest.norm()))

    assert correlation(pruned.recovered_in_sequence(network, images)) < 0.5 * correlation(pruned)


def _stream(output: object) -> Tensor:
    found = output[0] if isinstance(output, tuple) else output
    assert isinstance(found, Tensor)
    return found


def test_the_pruned_network_itself_is_left_alone() -> None:
    network = small_network()
    images = images_for(network, 32)
    pruned = network.pruned(random_plan(network.structure, seed=1), network.statistics(images))
    before = {name: value.clone() for name, value in pruned.module.state_dict().items()}
    pruned.recovered_in_sequence(network, images)
    assert all(torch.equal(value, before[name]) for name, value in pruned.module.state_dict().items())


def test_of_everything_kept_nothing_changes() -> None:
    network = small_network()
    images = images_for(network, 32)
    same = network.pruned(identity(network.structure), None).recovered_in_sequence(network, images)
    assert torch.allclose(same.outputs(images[:4]), network.outputs(images[:4]), atol=1e-3)


def test_merged_tokens_and_other_families_are_left_to_plain_recovery() -> None:
    network = small_network()
    whole = identity(network.structure)
    merged = dataclasses.replace(whole.blocks[1], tokens=TokenPlan(20, "merge", "middle", "similarity"))
    plan = Plan(whole.embed, (whole.blocks[0], merged, *whole.blocks[2:]))
    assert not network.pruned(plan, None).recovers_in_sequence
    swin = small_family("swin")
    assert not swin.pruned(identity(swin.structure), None).recovers_in_sequence
    assert network.pruned(identity(network.structure), None).recovers_in_sequence and not network.recovers_in_sequence


def test_readers_give_what_they_gave_before() -> None:
    """The stream of the pruned network differs, and q, k, v and the neurons come nearer to the old ones again."""
    network = small_network()
    images = images_for(network, 192)
    whole = identity(network.structure)
    blocks = tuple(dataclasses.replace(block, neurons=block.neurons[::2]) for block in whole.blocks)
    pruned = network.pruned(Plan(tuple(range(40)), blocks), network.statistics(images[:128]))
    again = pruned.recovered_in_sequence(network, images[:128])
    dense = network.pruned(whole, None)
    wanted = outputs_inside(dense, images[128:])
    before, after = (outputs_inside(one, images[128:]) for one in (pruned, again))
    for name, target in wanted.items():
        target = target[..., ::2] if name == "fc1" else target
        assert float((after[name] - target).square().mean()) < 0.9 * float((before[name] - target).square().mean())


def outputs_inside(network: TorchNetwork, images: Tensor) -> dict[str, Tensor]:
    """Return the outputs of the layers of the third block that read the stream."""
    found: dict[str, Tensor] = {}
    block = network.pruned_blocks()[2]
    assert block.attention is not None and block.mlp is not None
    for name, layer in (("qkv", block.attention.qkv), ("fc1", block.mlp.fc1)):
        layer.register_forward_hook(lambda _m, _inputs, y, name=name: found.update({name: y}))
    network.outputs(images, batch=len(images))
    return found
