"""Tests of the families with stages, the same tests for each family.

They describe each network exactly, prune it physically, recover, search and export it.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.data.preprocessing import Preprocessing
from models.errors import InvalidRequest, UnsupportedModel
from models.evaluation.parity import check_parity
from models.families import family_of
from models.families.describe import describe
from models.networks.torch_network import PLAIN_KINDS, TorchNetwork
from models.structure import HeadPlan, Plan, Structure, identity
from search.criteria import CRITERIA, rank
from search.methods import METHODS
from search.policy import Policy
from search.ranking import unranked
from search.spaces import space_of
from tests.support.families import SMALL, blocks_of, family_plan, masked_outputs, small_family
from tests.support.networks import images_for

TOLERANCE = 1e-9
NAMES = (
    "pvt_v2_b0",
    "pvt_v2_b2",
    "pvt_v2_b2_li",
    "pit_ti_224",
    "pit_s_224",
    "pit_s_distilled_224",
    "swin_tiny_patch4_window7_224",
)


def counted_macs(module: torch.nn.Module, structure: Structure) -> int:
    device = next(module.parameters()).device
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *structure.image, device=device))
    return int(counter.get_total_flops()) // 2


def check_counts(module: torch.nn.Module, structure: Structure) -> None:
    assert structure.macs == counted_macs(module, structure)
    assert structure.params == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_macs_and_parameters_of_published_sizes(name: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(name).eval()
    check_counts(module, describe(module, family_of(module), name))


@pytest.mark.parametrize("variant", SMALL)
def test_macs_and_parameters_of_random_plans(variant: str) -> None:
    network = small_family(variant)
    check_counts(network.module, network.structure)
    small = network.pruned(family_plan(network.structure, seed=3), None)
    assert small.structure.macs < network.structure.macs
    check_counts(small.module, small.structure)


@pytest.mark.parametrize("variant", SMALL)
def test_sliced_equals_masked(variant: str) -> None:
    network = small_family(variant)
    plan, images = family_plan(network.structure, 5, tokens=False), images_for(network, 2)
    before = copy.deepcopy(network.module.state_dict())
    small = network.pruned(plan, None)
    with torch.no_grad():
        found = small.module.double()(images.double())
    assert (found - masked_outputs(network, variant, plan, images)).abs().max() < TOLERANCE
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert all("forward" not in vars(module) for module in small.module.modules())


@pytest.mark.parametrize("variant", SMALL)
def test_blocks_and_halves_can_go(variant: str) -> None:
    network = small_family(variant)
    whole, images = identity(network.structure), images_for(network, 2)
    last = len(whole.blocks) - 1
    blocks = [dataclasses.replace(b, heads=()) if b.source == 0 else b for b in whole.blocks if b.source != last - 1]
    blocks[-1] = dataclasses.replace(blocks[-1], neurons=())
    small = network.pruned(Plan(whole.embed, tuple(blocks)), None)
    model = copy.deepcopy(network.module)
    originals = blocks_of(model, variant)
    with torch.no_grad():
        for layer in (
            originals[0].attn.proj,
            originals[last].mlp.fc2,
            originals[last - 1].attn.proj,
            originals[last - 1].mlp.fc2,
        ):
            layer.weight.zero_(), layer.bias.zero_()
        expected = model(images)
    assert torch.allclose(small.outputs(images), expected, atol=1e-4)
    check_counts(small.module, small.structure)
    small.module.train()(images).sum().backward()


@pytest.mark.parametrize("variant", [v for v in SMALL if "," not in v])
@pytest.mark.parametrize("criterion", [name for name, found in CRITERIA.items() if not found.needs & PLAIN_KINDS])
def test_every_criterion_ranks_and_a_space_plans(variant: str, criterion: str) -> None:
    network = small_family(variant)
    statistics = network.statistics(images_for(network, 6), CRITERIA[criterion].needs)
    ranking = rank(criterion, network.weights(), statistics)
    for scores, block in zip(ranking.blocks, network.structure.blocks, strict=True):
        shape = block.attention
        assert shape is not None and block.mlp is not None
        assert scores.heads.shape == (shape.heads,) and scores.neurons.shape == (block.mlp.neurons,)
        assert scores.qk.shape == (shape.heads, shape.qk_dim) and scores.v.shape == (shape.heads, shape.v_dim)
    space = space_of(METHODS["joint"], network.structure, ranking)
    tokens = tuple(0.5 for name in space.dimensions if name.startswith("tokens"))
    policy = Policy(heads=0.7, neurons=0.7, tokens=tokens)
    assert space.sketch(policy) == space.plan(policy).apply_to(network.structure)
    assert space.sketch(policy).macs < network.structure.macs


@pytest.mark.parametrize("variant", [v for v in SMALL if "," not in v])
def test_the_whole_way_to_onnx(variant: str, tmp_path: Path) -> None:
    """Rank, prune to 0.7, recover, train one step and export. Check that ONNX Runtime agrees."""
    network = small_family(variant)
    images = images_for(network, 24)
    statistics = network.statistics(images)
    plan = family_plan(network.structure, seed=1, keep=0.7)
    bare, recovered = network.pruned(plan, None), network.pruned(plan, statistics)
    dense = network.outputs(images)
    assert (recovered.outputs(images) - dense).norm() < 0.8 * (bare.outputs(images) - dense).norm()
    for before, after in zip(bare.readers(), recovered.readers(), strict=True):
        assert before.fc2 is not None and after.fc2 is not None
        assert not torch.equal(before.fc2.weight, after.fc2.weight)  # every block lost neurons
    pairs = [(b.projection, a.projection) for b, a in zip(bare.readers(), recovered.readers(), strict=True)]
    assert any(b is not None and a is not None and not torch.equal(b.weight, a.weight) for b, a in pairs)
    recovered.module.train()(images[:2]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in recovered.module.parameters())
    recovered.module.eval()
    check_counts(recovered.module, recovered.structure)
    recovered.export(tmp_path / "model.onnx", 4)
    assert check_parity(recovered, tmp_path / "model.onnx", 4, images[:8]).passed


def test_a_query_dim_matters_only_with_its_key() -> None:
    """Check that magnitude reads separate q and k layers like one fused layer, and gives the same scores."""
    network = small_family("pvt_v2")
    block, joined = blocks_of(network.module, "pvt_v2")[2], network.weights()[2].qkv
    k, v = block.attn.kv.weight.chunk(2)
    assert torch.equal(joined.weight, torch.cat([block.attn.q.weight, k, v]))


@pytest.mark.parametrize("variant", SMALL)
def test_a_narrower_embedding_is_refused(variant: str) -> None:
    structure = small_family(variant).structure
    with pytest.raises(InvalidRequest, match="embedding width"):
        dataclasses.replace(identity(structure), embed=(0, 1, 2)).apply_to(structure)


def test_tokens_that_a_later_layer_needs_cannot_go() -> None:
    structure = small_family("pvt_v2").structure
    space = space_of(METHODS["joint"], structure, unranked(structure))
    assert not any(name.startswith("tokens") for name in space.dimensions)


def test_dims_inside_heads_stay_where_the_forward_divides_by_heads() -> None:
    structure = small_family("swin").structure
    whole = identity(structure)
    first = dataclasses.replace(whole.blocks[0], heads=(HeadPlan((0, 1), (0, 1)),))
    with pytest.raises(InvalidRequest, match="complete heads only"):
        dataclasses.replace(whole, blocks=(first, *whole.blocks[1:])).apply_to(structure)
    dimensions = space_of(METHODS["joint"], structure, unranked(structure)).dimensions
    assert "heads" in dimensions and not {"qk", "v"} & set(dimensions)


def test_gathered_inputs_are_refused() -> None:
    structure = small_family("pvt_v2").structure
    whole = identity(structure)
    first = dataclasses.replace(whole.blocks[0], fc1_inputs=(0, 1))
    with pytest.raises(InvalidRequest, match="inputs of single layers"):
        dataclasses.replace(whole, blocks=(first, *whole.blocks[1:])).apply_to(structure)


def test_an_image_that_linear_attention_cannot_pool_for_onnx_is_refused() -> None:
    with torch.device("meta"):
        module = timm.create_model("pvt_v2_b2_li").eval()
    with pytest.raises(UnsupportedModel, match="multiple"):
        describe(module, family_of(module), "pvt_v2_b2_li", (64, 64))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("pvt_v2_b0", {"global_pool": ""}, "pooling"),
        ("pit_ti_224", {"global_pool": ""}, "pooling"),
        ("swin_tiny_patch4_window7_224", {"dynamic_img_size": True}, "dynamic image size"),
        ("swin_tiny_patch4_window7_224", {"global_pool": "max"}, "pooling"),
        ("swinv2_tiny_window8_256", {}, "not a family"),
    ],
)
def test_what_cannot_be_handled_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, **options).eval()
    with pytest.raises(UnsupportedModel, match=words):
        family_of(module)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pvt_v2_b0", "pit_ti_224", "swin_tiny_patch4_window7_224"])
def test_real_sizes_go_the_whole_way(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = timm.create_model(name)
    network = TorchNetwork(module, name, Preprocessing.of_model(module))
    images = images_for(network, 8)
    small = network.pruned(family_plan(network.structure, 1, keep=0.7), network.statistics(images))
    check_counts(small.module, small.structure)
    small.export(tmp_path / "model.onnx", 1)
    assert check_parity(small, tmp_path / "model.onnx", 1, images[:2]).passed


def test_statistics_of_plain_blocks_are_refused_by_name() -> None:
    """vitfit reads gates and attention only from one fused q/k/v layer and from a single list of blocks."""
    network = small_family("pvt_v2")
    with pytest.raises(
        InvalidRequest,
        match=r"statistics attention only from plain vision transformers.*'joint', 'mdc' or 'up-vit'",
    ):
        network.statistics(images_for(network, 2), {"attention"})


@pytest.mark.parametrize("variant", ["pvt_v2", "pit"])
def test_up_vit_removes_dims_neurons_and_halves_by_divergence(variant: str, tmp_path: Path) -> None:
    """Run UP-ViTs on a network with stages. The embedding width stays, and every other axis may become smaller."""
    network = small_family(variant)
    images = images_for(network, 12)
    statistics = network.statistics(images, CRITERIA["kl"].needs)
    space = space_of(METHODS["up-vit"], network.structure, rank("kl", network.weights(), statistics))
    assert {"qk", "v", "neurons", "halves"} <= set(space.dimensions) and "embed" not in space.dimensions
    plan = space.plan(space.along([1.0] * len(space.dimensions), 1.0))
    small = network.pruned(plan, statistics)
    assert small.structure.macs < 0.6 * network.structure.macs
    assert any(block.attention is None or block.mlp is None for block in small.structure.blocks) or len(
        small.structure.blocks
    ) < len(network.structure.blocks)
    check_counts(small.module, small.structure)
    small.export(tmp_path / "model.onnx", 1)
    assert check_parity(small, tmp_path / "model.onnx", 1, images[:2]).passed
