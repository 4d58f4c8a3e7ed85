"""Tests of rotated networks: they compute the same as the original, and cutting one is a projection of the original."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.data.open_dataset import open_data
from models.errors import InvalidRequest
from models.evaluation.metrics import agreement
from models.loading.load_model import open_model
from models.networks.torch_network import TorchNetwork
from models.rotation.bases import Bases
from models.statistics.statistics import Kind
from models.structure import HeadPlan, Plan, RotatedAxis, identity
from tests.support.counted import differs
from tests.support.networks import VARIANTS, images_for, small_network
from tests.support.small_jobs import digits

ALL: tuple[RotatedAxis, ...] = ("qk", "v", "embed")
OTHERS: dict[str, dict[str, Any]] = {
    "layer scale": {"init_values": 0.3},
    "no biases": {"qkv_bias": False},
    "features": {"num_classes": 0},
    "features, layer scale, registers": {"num_classes": 0, "init_values": 0.3, "reg_tokens": 2},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
}
ROTATED = {
    "class token": ALL,
    "q/k norm, layer scale": ("v", "embed"),
    "no biases, pre-norm": ALL,
}


def in_float64(**options: Any) -> TorchNetwork:
    network = small_network(**options)
    return network.with_module(network.module.double())


def rotated(network: TorchNetwork, images: int = 24) -> tuple[TorchNetwork, Bases]:
    bases = network.bases(images_for(network, images, seed=1).double())
    assert bases is not None
    return network.rotated(bases), bases


def plan_of(network: TorchNetwork, width: int, qk: int, v: int) -> Plan:
    """Return the plan that keeps the first members of each rotated axis."""
    blocks = []
    for plan, block in zip(identity(network.structure).blocks, network.structure.blocks, strict=True):
        assert block.attention is not None
        heads = tuple(HeadPlan(head.qk[:qk], head.v[:v]) for head in plan.heads)
        blocks.append(dataclasses.replace(plan, heads=heads))
    assert network.rotation is not None
    return Plan(tuple(range(width)), tuple(blocks), rotated=network.rotation.axes)


def apart(one: Tensor, other: Tensor) -> float:
    return float(((one - other).abs().max() / other.abs().max()).detach())


@pytest.mark.parametrize("options", [*VARIANTS.values(), *OTHERS.values()], ids=[*VARIANTS, *OTHERS])
def test_a_rotated_network_computes_the_same(options: dict[str, Any]) -> None:
    network = in_float64(**options)
    turned, _ = rotated(network)
    images = images_for(network, 5).double()
    assert apart(turned.outputs(images), network.outputs(images)) < 1e-9
    whole = turned.pruned(dataclasses.replace(identity(turned.structure), rotated=ALL), None)
    assert apart(whole.outputs(images), network.outputs(images)) < 1e-9
    assert turned.structure.classes == network.structure.classes


@pytest.mark.parametrize(("name", "axes"), ROTATED.items(), ids=ROTATED)
def test_axes_that_a_network_refuses_stay_as_they_are(name: str, axes: tuple[RotatedAxis, ...]) -> None:
    _, bases = rotated(in_float64(**VARIANTS[name]))
    assert bases.axes == axes


def heads_projected(network: TorchNetwork, bases: Bases, qk: int, v: int) -> nn.Module:
    """Return the original network with the projectors of its heads put in, which has all of its dims."""
    module = copy.deepcopy(network.module)
    blocks: Any = module.blocks
    for block, found in zip(blocks, bases.blocks, strict=True):
        assert found.qk is not None and found.v is not None
        weight = block.attn.qkv.weight.data.unflatten(0, (3, 3, -1))  # (q k v, heads, dims, D)
        bias = block.attn.qkv.bias.data.unflatten(0, (3, 3, -1))
        maps = (found.qk.queries, found.qk.keys, found.v.values)
        for part, (matrices, rank) in enumerate(zip(maps, (qk, qk, v), strict=True)):
            inverse = torch.linalg.inv(matrices)
            projector = inverse[..., :rank] @ matrices[:, :rank]
            weight[part] = projector @ weight[part]
            bias[part] = (projector @ bias[part].unsqueeze(-1)).squeeze(-1)
    return module


def test_cut_heads_are_projections_of_the_original() -> None:
    network = in_float64()
    turned, bases = rotated(network)
    images = images_for(network, 5).double()
    cut = turned.pruned(plan_of(turned, 48, 7, 5), None)
    wanted = heads_projected(network, bases, 7, 5)(images)
    assert cut.structure.blocks[0].attention is not None
    assert (cut.structure.blocks[0].attention.qk_dim, cut.structure.blocks[0].attention.v_dim) == (7, 5)
    assert apart(cut.outputs(images), wanted) < 1e-9
    assert apart(cut.outputs(images), network.outputs(images)) > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"class_token": False, "global_pool": "avg"}, {"num_classes": 0}, {"pre_norm": True}]
)
def test_a_cut_width_is_a_projection_of_the_original(options: dict[str, Any]) -> None:
    """Everything that is added to the stream is projected; norms and readers of the original stay as they are."""
    network = in_float64(**options)
    turned, bases = rotated(network)
    (stream,) = bases.streams
    kept = stream.directions[:, : 32 - 1]
    projector = kept @ kept.T
    module: Any = copy.deepcopy(network.module)
    with torch.no_grad():
        conv = module.patch_embed.proj
        if "pre_norm" in options:  # the stream begins behind the norm, so everything before it stays
            module.norm_pre.register_forward_hook(lambda _module, _inputs, x: x @ projector)
        else:
            conv.weight.copy_((projector @ conv.weight.flatten(1)).reshape_as(conv.weight))
            conv.bias.copy_(projector @ conv.bias)
            for table in (module.cls_token, module.pos_embed):
                if table is not None:
                    table.copy_(table @ projector)
        for block in module.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.copy_(projector @ layer.weight)
                layer.bias.copy_(projector @ layer.bias)
    images = images_for(network, 5).double()
    cut = turned.pruned(plan_of(turned, 32, 16, 16), None)
    assert cut.structure.width == 32
    assert apart(cut.outputs(images), module(images)) < 1e-9
    assert cut.outputs(images).shape == network.outputs(images).shape
    assert differs(cut, cut.module.float()) == []


def test_a_planted_narrow_stream_is_found() -> None:
    """A network whose stream lives in 20 of 48 dims keeps its outputs at width 21."""
    network = in_float64()
    module: Any = network.module
    basis = torch.linalg.qr(torch.randn(48, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64))[0]
    basis = torch.linalg.qr(basis - basis.mean(0))[0]  # mean-free, so that a norm takes nothing away
    projector = basis @ basis.T
    with torch.no_grad():
        conv = module.patch_embed.proj
        conv.weight.copy_((projector @ conv.weight.flatten(1)).reshape_as(conv.weight))
        for tensor in (module.cls_token, module.pos_embed, conv.bias):
            tensor.copy_(tensor @ projector)
        for block in module.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.copy_(projector @ layer.weight)
                layer.bias.copy_(projector @ layer.bias)
    turned, bases = rotated(network)
    (stream,) = bases.streams
    assert bool((stream.energies[20:] < 1e-12 * stream.energies[0]).all())
    images = images_for(network, 5).double()
    assert apart(turned.pruned(plan_of(turned, 21, 16, 16), None).outputs(images), network.outputs(images)) < 1e-9


def test_a_stream_with_huge_coordinates_stays_exact() -> None:
    """Some trained streams have coordinates hundreds of times larger than the others."""
    network = in_float64()
    module: Any = network.module
    with torch.no_grad():
        module.pos_embed[..., 5] += 300
        module.blocks[1].mlp.fc2.bias[9] -= 500
    turned, bases = rotated(network)
    images = images_for(network, 5).double()
    assert apart(turned.outputs(images), network.outputs(images)) < 1e-9
    (stream,) = bases.streams
    assert bool(torch.isfinite(stream.directions).all())


def test_the_same_images_give_the_same_bases() -> None:
    one, other = (rotated(small_network().with_module(small_network().module.double()))[0] for _ in range(2))
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_recovery_fits_the_readers_of_a_narrower_stream(tmp_path: Path) -> None:
    """In a trained network, the directions that stay say much of what the lost ones told a layer."""
    model, folder = digits(tmp_path)
    network = open_model(model)
    assert isinstance(network, TorchNetwork)
    data = open_data(folder, network.preprocessing, 10)
    images, unseen = (data.take(split, 128, 0).images for split in ("calibration", "selection"))
    bases = network.bases(images)
    assert bases is not None
    turned = network.rotated(bases)
    block = turned.structure.blocks[0].attention
    assert block is not None
    plan = plan_of(turned, turned.structure.width // 2, block.qk_dim, block.v_dim)
    kinds: tuple[tuple[Kind, ...], ...] = ((), ("inputs",))
    found = [turned.pruned(plan, turned.statistics(images, kind)).outputs(unseen) for kind in kinds]
    bare, recovered = (agreement(network.outputs(unseen), outputs) for outputs in found)
    assert 0.7 * bare < recovered < 0


def test_recovery_takes_up_what_the_mean_of_the_values_wrote() -> None:
    """Without recovery, cut v dims lose the mean that they wrote. The bias of the projection takes it up."""
    network = in_float64()
    with torch.no_grad():
        for block in network.module.blocks:  # type: ignore[union-attr]
            block.attn.qkv.bias.add_(1.0)
    turned, _ = rotated(network)
    images = images_for(network, 24, seed=1).double()
    plan = plan_of(turned, 48, 16, 6)
    statistics = turned.statistics(images)
    bare, recovered = (
        apart(turned.pruned(plan, s).outputs(images), network.outputs(images)) for s in (None, statistics)
    )
    assert recovered < 0.7 * bare


def test_values_that_are_no_numbers_are_refused() -> None:
    network = small_network()
    with torch.no_grad():
        network.module.get_parameter("blocks.2.mlp.fc1.bias")[3] = float("nan")
    with pytest.raises(InvalidRequest, match="not finite numbers"):
        network.bases(images_for(network, 8))


def test_a_constant_stream_stays_exact() -> None:
    """A network whose blocks write nothing, and whose patches are all alike: most directions carry nothing."""
    network = in_float64()
    module: Any = network.module
    with torch.no_grad():
        module.patch_embed.proj.weight.zero_()
        for block in module.blocks:
            block.attn.proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
    turned, _ = rotated(network)
    images = images_for(network, 5).double()
    assert apart(turned.outputs(images), network.outputs(images)) < 1e-9
