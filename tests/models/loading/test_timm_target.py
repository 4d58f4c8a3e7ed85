"""Tests that prune a larger network to the exact shape of a smaller timm model.

timm loads the result under its own names.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import timm
import torch

from models.errors import InvalidRequest, UnknownName
from models.loading.timm_target import check_same_design, target_structure, timm_weights, to_timm
from models.networks.torch_network import TorchNetwork
from models.statistics.statistics import Statistics
from models.structure import Structure, identity
from search.spaces.target_shape import NoScores, check_reachable, pooled_heads, regular_plan
from tests.support.families import small_family
from tests.support.networks import images_for, random_plan, small_network

LARGE = {"img_size": 32, "embed_dim": 96, "depth": 3, "num_heads": 12, "num_classes": 5}
"""A stand-in for DeiT-B.

It has two and four times the width and heads of the stand-ins for DeiT-S and DeiT-T. All heads have the same size.
"""
SMALL = {
    "deit_small_patch16_224": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 6},
    "deit_tiny_patch16_224": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def large(**options: Any) -> TorchNetwork:
    return small_network(name="deit_base_patch16_224", **{**LARGE, **options})


def random_scores(structure: Structure, seed: int = 0) -> tuple[list[NoScores], np.ndarray]:
    random = np.random.default_rng(seed)
    blocks = [
        NoScores(
            random.random((block.attention.heads, block.attention.v_dim)),  # type: ignore[union-attr]
            random.random(block.mlp.neurons),  # type: ignore[union-attr]
            random.random(2),
        )
        for block in structure.blocks
    ]
    return blocks, random.random(structure.width)


def pruned(network: TorchNetwork, target: Structure, statistics: Statistics | None = None) -> TorchNetwork:
    blocks, embed = random_scores(network.structure)
    stream = None if "embed" in network.structure.fixed else embed
    return network.pruned(regular_plan(network.structure, blocks, stream, target), statistics)


def shape(structure: Structure) -> list[tuple[Any, ...]]:
    return [(op.kind, op.rows, op.inner, op.cols, op.count, op.params) for op in structure.ops()]


@pytest.mark.parametrize("name", SMALL)
def test_timm_s_own_model_gives_the_pruned_network_s_outputs(name: str) -> None:
    network = large()
    target = target_structure(network, name, **SMALL[name])
    small = pruned(network, target)
    assert shape(small.structure) == shape(target)
    module = to_timm(small, network, name, **SMALL[name])
    assert type(module).__module__.startswith("timm.")
    images = images_for(network, 5)
    with torch.inference_mode():
        torch.testing.assert_close(module(images), small.outputs(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(small.outputs(images), network.outputs(images), rtol=0.1)


@pytest.mark.slow
def test_pvt_v2_b2_becomes_a_real_b1() -> None:
    module = timm.create_model("pvt_v2_b2").eval()
    network = TorchNetwork(module, "pvt_v2_b2", dataclasses.replace(small_network().preprocessing, size=(3, 224, 224)))
    target = target_structure(network, "pvt_v2_b1")
    small = pruned(network, target)
    loaded = timm.create_model("pvt_v2_b1").eval()
    loaded.load_state_dict(to_timm(small, network, "pvt_v2_b1").state_dict())
    images = images_for(network, 2)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), small.outputs(images), rtol=1e-3, atol=1e-4)
    assert small.structure.params == pytest.approx(14.0e6, rel=0.005)  # arXiv 2111.15127, table 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_small_patch16_224", "deit_tiny_patch16_224"])
def test_deit_base_becomes_a_real_deit_small_and_tiny(name: str) -> None:
    module = timm.create_model("deit_base_patch16_224").eval()
    network = TorchNetwork(module, "deit_base_patch16_224", small_network().preprocessing)
    target = target_structure(network, name)
    small = pruned(network, target)
    loaded = timm.create_model(name).eval()
    loaded.load_state_dict(to_timm(small, network, name).state_dict())
    images = images_for(network, 2)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), small.outputs(images), rtol=1e-4, atol=1e-5)
    assert small.structure.params == sum(p.numel() for p in loaded.parameters())


def test_heads_of_another_size_keep_the_scale_of_the_original() -> None:
    """timm divides by the root of the size of its own heads. The converted weights correct the difference."""
    network, name = large(), "deit_tiny_patch16_224"
    options = {"patch_size": 8, "embed_dim": 36, "depth": 3, "num_heads": 3}
    small = pruned(network, target_structure(network, name, **options))
    assert small.structure.blocks[0].attention.qk_dim == 12  # type: ignore[union-attr]
    module, images = to_timm(small, network, name, **options), images_for(network, 3)
    with torch.inference_mode():
        torch.testing.assert_close(module(images), small.outputs(images), rtol=1e-4, atol=1e-5)


def test_layer_scale_and_recovered_weights_come_along() -> None:
    network, name = large(init_values=0.3, qkv_bias=False), "deit_tiny_patch16_224"
    options = {**SMALL[name], "init_values": 1e-5, "qkv_bias": False}
    statistics = network.statistics(images_for(network, 8))
    small = pruned(network, target_structure(network, name, **options), statistics)
    module, images = to_timm(small, network, name, **options), images_for(network, 3)
    with torch.inference_mode():
        torch.testing.assert_close(module(images), small.outputs(images), rtol=1e-4, atol=1e-5)


def test_neighbouring_heads_are_pooled_and_the_best_dims_kept() -> None:
    """Check by hand: heads 0 and 1 give the first head, heads 2 and 3 the second. q, k and v keep the same rows."""
    dims = np.array([[9.0, 1.0], [8.0, 2.0], [1.0, 2.0], [3.0, 4.0]])
    first, second = pooled_heads(dims, heads=2, dim=2)
    assert first.qk == first.v == (0, 2)
    assert second.qk == second.v == (6, 7)


def test_the_worst_blocks_dims_and_neurons_go() -> None:
    network = large(depth=3)
    blocks, embed = random_scores(network.structure)
    blocks[1].halves[:] = -1
    target = target_structure(network, "deit_tiny_patch16_224", **SMALL["deit_tiny_patch16_224"])
    plan = regular_plan(network.structure, blocks, embed, target)
    assert [block.source for block in plan.blocks] == [0, 2]
    assert set(plan.embed) == set(np.argsort(-embed)[:24])
    assert set(plan.blocks[1].neurons) == set(np.argsort(-blocks[2].neurons)[:96])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"embed_dim": 192, "num_heads": 12}, "96 embedding dims, but the target has 192"),
        ({"depth": 4}, "3 blocks, but the target has 4"),
        ({"num_heads": 24, "embed_dim": 96}, "12 heads, but the target has 24"),
        ({"mlp_ratio": 16}, "384 neurons, but the target has 768"),
        ({"num_heads": 1, "embed_dim": 96, "patch_size": 16}, "patch"),
        ({"num_heads": 5, "embed_dim": 90}, "become one head, but each head of the target has 18"),
        ({"qk_norm": True}, "norms q and k"),
        ({"init_values": 0.1}, "designs differ"),
        ({"qkv_bias": False}, "with bias"),
        ({"class_token": False, "global_pool": "avg"}, "register tokens: the network has 1, the target has 0"),
        ({"global_pool": "avg", "fc_norm": False}, "designs differ"),
    ],
)
def test_what_pruning_cannot_reach_is_refused_with_the_reason(options: dict[str, Any], reason: str) -> None:
    network, wanted = large(), {**SMALL["deit_small_patch16_224"], **options}
    with pytest.raises(InvalidRequest, match=reason):
        reach(network, "deit_small_patch16_224", **wanted)


def reach(network: TorchNetwork, name: str, **options: Any) -> None:
    check_reachable(network.structure, target_structure(network, name, **options))
    check_same_design(network, name, **options)


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="deit_tiny"):
        target_structure(large(), "deit_tinny_patch16_224")


def test_scores_that_are_missing_are_refused() -> None:
    network = large()
    target = target_structure(network, "deit_tiny_patch16_224", **SMALL["deit_tiny_patch16_224"])
    blocks, embed = random_scores(network.structure)
    with pytest.raises(InvalidRequest, match="kl-exact"):
        regular_plan(network.structure, blocks, None, target)
    assert embed.shape == (96,)


def test_an_irregular_network_has_no_timm_weights() -> None:
    network = large()
    small = network.pruned(random_plan(network.structure, seed=1), None)
    with pytest.raises(InvalidRequest, match="regular shape"):
        timm_weights(small, network._family)
    halved = identity(network.structure)
    with pytest.raises(InvalidRequest, match="not have the shape"):
        to_timm(network.pruned(halved, None), network, "deit_tiny_patch16_224", **SMALL["deit_tiny_patch16_224"])


def test_a_structure_reaches_itself() -> None:
    network = large()
    check_reachable(network.structure, network.structure)
    blocks, embed = random_scores(network.structure)
    assert regular_plan(network.structure, blocks, embed, network.structure) == identity(network.structure)


PVT = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "mlp_ratios": (4, 4, 2, 2), "num_classes": 7}


def test_stages_lose_blocks_each_by_itself_and_timm_loads_the_result() -> None:
    """Prune a small PVTv2-B2 to B1, which has the same widths and fewer blocks in some stages."""
    network = small_family("pvt_v2", depths=(3, 4, 2, 2))
    target = target_structure(network, "pvt_v2_b1", **PVT)
    blocks, _ = random_scores(network.structure)
    for number in (0, 3, 4):
        blocks[number].halves[:] = -1
    plan = regular_plan(network.structure, blocks, None, target)
    assert [block.source for block in plan.blocks] == [1, 2, 5, 6, 7, 8, 9, 10]
    small = network.pruned(plan, None)
    assert shape(small.structure) == shape(target)
    module = to_timm(small, network, "pvt_v2_b1", **PVT)
    images = images_for(network, 3)
    with torch.inference_mode():
        torch.testing.assert_close(module(images), small.outputs(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(small.outputs(images), network.outputs(images), rtol=0.1)


def test_a_width_that_cannot_be_cut_is_said_with_its_stage() -> None:
    network, narrow = small_family("pvt_v2"), PVT | {"embed_dims": (8, 16, 24, 16), "depths": (1, 1, 1, 1)}
    with pytest.raises(InvalidRequest, match="stage 3 has 32 embedding dims, which this architecture cannot cut"):
        reach(network, "pvt_v2_b1", **narrow)
