"""Tests of leave-one-out scores.

The exact score is the loss from the removal of one member at a time. The estimate from gradients ranks the members in
the same order.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional

from models.errors import InvalidRequest
from models.networks.torch_network import TorchNetwork
from models.statistics.leave_one_out import check_cost
from models.statistics.member_scores import MemberScores, StreamScores
from models.statistics.statistics import Statistics, from_tensors, to_tensors
from models.structure import BlockPlan, HeadPlan, Plan, identity
from tests.support.networks import VARIANTS, images_for, small_network

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3, "mlp_ratio": 2, "img_size": 32}
IMAGES = 12
BLOCK = 1


pytestmark = pytest.mark.usefixtures("one_thread")


def small(variant: str) -> TorchNetwork:
    return small_network(**{**SMALL, **VARIANTS[variant]})


@pytest.fixture(scope="module", params=VARIANTS)
def taken(request: pytest.FixtureRequest) -> tuple[TorchNetwork, Statistics]:
    network = small(request.param)
    return network, network.statistics(images_for(network, IMAGES), {"fisher", "deletion"})


def divergence(network: TorchNetwork, smaller: TorchNetwork) -> float:
    images = images_for(network, IMAGES)
    dense, left = (functional.log_softmax(n.outputs(images).double(), 1) for n in (network, smaller))
    return float((dense.exp() * (dense - left)).sum(1).mean())


def without(network: TorchNetwork, change: Callable[[BlockPlan], BlockPlan]) -> float:
    """Return the divergence after physical pruning of one block. change: what is removed from this block."""
    plan = identity(network.structure)
    blocks = [change(block) if block.source == BLOCK else block for block in plan.blocks]
    return divergence(network, network.pruned(dataclasses.replace(plan, blocks=tuple(blocks)), None))


def exact(taken: tuple[TorchNetwork, Statistics]) -> MemberScores:
    scores = taken[1].blocks[BLOCK].deletion
    assert scores is not None
    return scores


def stream(statistics: Statistics, kind: str) -> StreamScores:
    found = getattr(statistics, kind)
    assert isinstance(found, StreamScores)
    return found


def test_a_deleted_neuron_is_a_pruned_neuron(taken: tuple[TorchNetwork, Statistics]) -> None:
    for gone in (0, 17, 47):
        kept = tuple(i for i in range(48) if i != gone)
        expected = without(taken[0], functools.partial(dataclasses.replace, neurons=kept))
        assert float(exact(taken).neurons[gone]) == pytest.approx(expected, rel=1e-3)


def test_a_deleted_embedding_dim_is_a_pruned_embedding_dim(taken: tuple[TorchNetwork, Statistics]) -> None:
    """The dim is removed everywhere: in tables, in norms, in every product and in the classifier."""
    plan = identity(taken[0].structure)
    for gone in (0, 11, 23):
        smaller = Plan(tuple(i for i in range(24) if i != gone), plan.blocks)
        expected = divergence(taken[0], taken[0].pruned(smaller, None))
        assert float(stream(taken[1], "deletion").embed[gone]) == pytest.approx(expected, rel=1e-3)


def test_a_deleted_head_or_half_is_a_pruned_one(taken: tuple[TorchNetwork, Statistics]) -> None:
    scores = exact(taken)
    one_less = without(taken[0], lambda block: dataclasses.replace(block, heads=(block.heads[0], block.heads[2])))
    assert float(scores.heads[1]) == pytest.approx(one_less, rel=1e-3)
    halves: tuple[dict[str, Any], ...] = ({"heads": ()}, {"neurons": ()})
    for half, gone in enumerate(halves):
        network = taken[0]
        expected = without(network, functools.partial(dataclasses.replace, **gone))
        assert float(scores.halves[half]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("variant", ["class token", "no biases, pre-norm"])
def test_a_deleted_attention_dim_is_a_naive_loop(variant: str) -> None:
    """Set row j of q, k and v (weights and biases) to zero, one j at a time. These networks have no norm of q and k."""
    network = small(variant)
    scores = network.statistics(images_for(network, IMAGES), {"deletion"}).blocks[BLOCK].deletion
    assert scores is not None
    for row in (0, 9, 23):
        for sides, found in (((0, 1), scores.qk), ((2,), scores.v), ((0, 1, 2), scores.dims)):
            zeroed = small(variant)
            qkv: Any = zeroed.blocks()[BLOCK].get_submodule("attn.qkv")
            with torch.no_grad():
                for side in sides:
                    qkv.weight[24 * side + row] = 0
                    if qkv.bias is not None:
                        qkv.bias[24 * side + row] = 0
            assert float(found.flatten()[row]) == pytest.approx(divergence(network, zeroed), rel=1e-3)


def test_normed_queries_are_normed_over_the_dims_that_stay() -> None:
    """Every head loses one dim. The masks of all heads together must then act like the pruned norms."""
    network = small_network(**{**SMALL, "num_heads": 1, **VARIANTS["q/k norm, layer scale"]})
    scores = network.statistics(images_for(network, IMAGES), {"deletion"}).blocks[BLOCK].deletion
    kept = tuple(i for i in range(24) if i != 5)
    whole = tuple(range(24))
    expected = without(network, lambda block: dataclasses.replace(block, heads=(HeadPlan(kept, whole),)))
    assert scores is not None
    assert float(scores.qk[0, 5]) == pytest.approx(expected, rel=1e-3)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    return float(scipy.stats.spearmanr(a.flatten(), b.flatten()).statistic)


@pytest.mark.parametrize("axis", ["qk", "v", "dims", "neurons"])
def test_the_estimate_ranks_members_as_deletion_does(taken: tuple[TorchNetwork, Statistics], axis: str) -> None:
    for block in taken[1].blocks:
        assert rank_correlation(getattr(block.fisher, axis), getattr(block.deletion, axis)) > 0.9


def test_the_estimate_ranks_the_network_s_lumps_as_deletion_does(taken: tuple[TorchNetwork, Statistics]) -> None:
    """Compare the heads of all blocks, and the embedding dims, whose removal changes every norm."""
    estimate, exact = (
        torch.cat([getattr(block, kind).heads for block in taken[1].blocks]) for kind in ("fisher", "deletion")
    )
    assert rank_correlation(estimate, exact) > 0.8
    assert rank_correlation(stream(taken[1], "fisher").embed, stream(taken[1], "deletion").embed) > 0.8


def test_the_estimate_is_in_nats_too(taken: tuple[TorchNetwork, Statistics]) -> None:
    """For small changes, the estimate gives the size of the loss and not only the order."""
    for block in taken[1].blocks:
        assert block.fisher is not None and block.deletion is not None
        assert float((block.fisher.neurons / block.deletion.neurons).median()) == pytest.approx(1, rel=0.1)
        # With norms of q and k, this ratio would be a half if the estimate did not follow the norms.
        assert float((block.fisher.qk / block.deletion.qk).median()) == pytest.approx(1, rel=0.3)
    ratio = stream(taken[1], "fisher").embed / stream(taken[1], "deletion").embed
    assert float(ratio.median()) == pytest.approx(1, rel=0.25)


def test_too_dear_a_deletion_is_refused_and_the_estimate_named() -> None:
    structure = small_network(img_size=224, patch_size=16, embed_dim=192, depth=12).structure
    with pytest.raises(InvalidRequest, match="Choose criterion 'kl'") as refused:
        check_cost(structure, 512)
    assert refused.value.facts["macs"] > refused.value.facts["allowed"]
    with pytest.raises(InvalidRequest, match="no classifier"):
        check_cost(small_network(**SMALL, num_classes=0).structure, 8)


def test_the_scores_survive_a_file_and_leave_the_network_alone() -> None:
    network = small("class token")
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    statistics = network.statistics(images_for(network, IMAGES), {"fisher", "deletion"})
    back = from_tensors(Statistics, to_tensors(statistics))
    assert back.taylor is None and back.blocks[0].taylor is None
    assert stream(back, "deletion").embed.equal(stream(statistics, "deletion").embed)
    assert all(value.equal(before[name]) for name, value in network.module.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.module.modules())
