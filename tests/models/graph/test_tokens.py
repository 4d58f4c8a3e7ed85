"""Tests of token reduction in graph models."""

import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional

from models.data.dataset import Batch
from models.data.preprocessing import Preprocessing
from models.errors import InvalidRequest
from models.evaluation.kept_patches import kept_patches
from models.evaluation.parity import check_parity, check_quantised
from models.graph.network import GraphNetwork
from models.graph.tokens.cut import TokenRows
from models.loading.load_model import untrained
from models.loading.load_onnx import open_onnx
from models.structure import Plan, Reducer, Structure, TokenPlan, identity
from tests.support.counted import differs
from tests.support.plans import plan_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, dict[str, Any]] = {
    "eva02_tiny_patch14_224": {"img_size": 84, "depth": 4},
    "beit_base_patch16_224": {"img_size": 96, "depth": 4, "embed_dim": 96, "num_heads": 3},
    "vit_relpos_small_patch16_224": {"img_size": 96, "depth": 4, "embed_dim": 96, "num_heads": 3},
    "vit_small_patch16_dinov3": {"img_size": 96, "depth": 4, "embed_dim": 96, "num_heads": 3},
    "vit_base_patch16_siglip_224": {"img_size": 96, "depth": 4, "embed_dim": 96, "num_heads": 3},
    "cait_xxs24_224": {"img_size": 96, "depth": 4, "embed_dim": 96, "num_heads": 3},
}
"""Models with rotary positions, tables of relative positions, registers, attention pooling and a late class token."""


def small(name: str, **options: Any) -> tuple[Any, GraphNetwork]:
    """Return a model with random weights everywhere.

    The weights of a new model contain zeros, which would hide missing parts.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **(SMALL[name] | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, GraphNetwork(model, name, Preprocessing.of_model(model), 10)


def images(network: GraphNetwork, count: int = 3) -> Tensor:
    return torch.randn(count, *network.structure.image, generator=torch.Generator().manual_seed(1))


def without_tokens(plan: Plan, structure: Structure, reducer: Reducer = "drop", keep: float = 0.6) -> Plan:
    """Return the plan with token reductions in the second and the fourth block."""
    blocks, patches = list(plan.blocks), structure.tokens - structure.prefix
    for place, share in ((1, keep), (3, keep / 2)):
        blocks[place] = dataclasses.replace(blocks[place], tokens=TokenPlan(round(share * patches), reducer))
    return dataclasses.replace(plan, blocks=tuple(blocks))


@pytest.mark.parametrize("reducer", ["drop", "fuse", "weighted"])
@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_the_graph_way_and_the_family_way_keep_the_same_tokens(reducer: Reducer, pooling: str) -> None:
    family = untrained("deit_tiny_patch16_224", depth=4, img_size=96, num_classes=10, global_pool=pooling)
    graph = GraphNetwork(family.module, "deit", family.preprocessing, 10)
    x = images(graph)
    found = []
    for network in (family, graph):
        plan = without_tokens(plan_of(network.structure, 0.7), network.structure, reducer)
        found.append(network.pruned(plan, None))
    if pooling == "token":  # else they choose tokens by different attentions
        assert torch.allclose(found[0].outputs(x), found[1].outputs(x), atol=1e-5)
    assert found[0].structure.macs == found[1].structure.macs
    assert [r.kept for r in found[0].reductions()] == [r.kept for r in found[1].reductions()] == [22, 11]


@pytest.mark.parametrize("name", [name for name in SMALL if "cait" not in name])
def test_what_stays_sees_what_it_would_see_if_the_others_were_hidden(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with the original, in which no later attention sees the removed tokens.

    Both give the same outputs. Every kept token keeps its position, whatever table the position comes from.
    """
    model, network = small(name, **({} if "siglip" in name else {"global_pool": "avg"}))
    plan = without_tokens(identity(network.structure), network.structure)
    cut, x = network.pruned(plan, None), images(network)
    kept = [one.places for one in kept_patches(cut, x)]
    prefix, patches = network.structure.prefix, network.structure.tokens - network.structure.prefix
    hidden = []
    for places in kept:
        left = torch.zeros(len(x), prefix + patches, dtype=torch.bool)
        left[:, :prefix] = True
        hidden.append(left.scatter(1, places + prefix, True))
    calls: list[int] = []
    fused = functional.scaled_dot_product_attention

    def masked(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        calls.append(1)
        stage = 0 if len(calls) <= 2 else 1 if len(calls) <= 4 else 2  # reductions after blocks 1 and 3
        if stage == 0:
            return fused(q, k, v, attn_mask=attn_mask, **options)
        bias = torch.zeros(hidden[0].shape).masked_fill(~hidden[stage - 1], -torch.inf)[:, None, None]
        return fused(q, k, v, attn_mask=bias if attn_mask is None else attn_mask + bias, **options)

    seen: list[Tensor] = []
    handle = model.norm.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    monkeypatch.setattr(functional, "scaled_dot_product_attention", masked)
    with torch.inference_mode():
        if "siglip" in name:
            expected = model(x)
        else:
            model.forward_features(x)
            stayed = [model.norm(seen[0][i, hidden[-1][i]][None]) for i in range(len(x))]
            expected = torch.cat([model.forward_head(tokens) for tokens in stayed])
    handle.remove()
    monkeypatch.undo()
    assert len(calls) >= 4
    assert torch.allclose(cut.outputs(x), expected, atol=1e-4)
    assert not torch.allclose(network.outputs(x), expected, atol=1e-2)


@pytest.mark.parametrize("name", list(SMALL))
def test_macs_are_torch_s_own_with_every_reducer(name: str) -> None:
    model, network = small(name)
    assert differs(network, model) == []
    for reducer in ("drop", "fuse", "weighted"):
        plan = without_tokens(plan_of(network.structure, 0.7), network.structure, reducer)
        cut = network.pruned(plan, None)
        assert differs(cut, cut.module) == []
        assert cut.structure.macs < 0.7 * network.structure.macs


@pytest.mark.parametrize("reducer", ["drop", "fuse"])
@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "cait_xxs24_224"])
def test_the_file_keeps_the_same_tokens(name: str, reducer: Reducer, tmp_path: Path) -> None:
    _, network = small(name)
    cut = network.pruned(without_tokens(plan_of(network.structure, 0.7), network.structure, reducer), None)
    x = images(network, 4)
    for batch in (1, None):
        cut.export(tmp_path / "model.onnx", batch)
        report = check_parity(cut, tmp_path / "model.onnx", batch or 4, x)
        assert report.forced is not None and report.forced.max_relative < 1e-3 and report.passed


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in SMALL if "cait" not in name])
def test_from_an_onnx_file_as_from_pytorch(name: str, dynamo: bool, tmp_path: Path) -> None:
    model, network = small(name)
    x = images(network, 4)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # torch's exporters fail on some of timm's fused attentions
    torch.onnx.export(
        model,
        (x,),
        str(tmp_path / "model.onnx"),
        input_names=["images"],
        output_names=["logits"],
        dynamo=dynamo,
        opset_version=18 if dynamo else 17,
        dynamic_axes=None if dynamo else {"images": {0: "batch"}, "logits": {0: "batch"}},
    )
    read = open_onnx(tmp_path / "model.onnx", name, None)
    found = []
    for one in (network, read):
        plan = without_tokens(plan_of(one.structure, 0.7), one.structure, "fuse")
        cut = one.pruned(plan, None)
        assert differs(cut, cut.module) == []
        found.append(cut.outputs(x))
        if "eva" in name:  # sines and cosines: one look-up for all blocks after the first reduction
            assert sum(isinstance(module, TokenRows) for module in cut.module.modules()) == 2
    assert (found[0] - found[1]).abs().max() < 1e-4 * found[0].abs().max()


def test_its_package_weighs_as_much_as_it_stands_for() -> None:
    """The outputs are a mean over tokens, and the tokens hardly differ.

    Therefore a fused token that stands for many tokens changes the outputs only a little.
    """
    model, network = small("vit_relpos_small_patch16_224")
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(0.01)
    network = GraphNetwork(model, "relpos", Preprocessing.of_model(model), 10)
    plan, x = identity(network.structure), images(network)
    lost = {}
    for reducer in ("drop", "fuse"):
        cut = network.pruned(without_tokens(plan, network.structure, reducer, 0.2), None)
        lost[reducer] = float((cut.outputs(x) - network.outputs(x)).norm())
    assert lost["fuse"] < 0.1 * lost["drop"]


def test_rows_of_a_table_are_those_of_the_tokens_and_their_mean_for_a_package() -> None:
    table = torch.arange(5 * 5.0).reshape(5, 5)
    found = TokenRows(4, (-2, -1), before=1, gone=2)(table, torch.tensor([[2, 0], [1, 3]]))
    assert found.shape == (2, 1, 4, 4)
    assert found[0, 0, 1].tolist() == [15, 18, 16, 18]  # token 2: row 3, columns 0, 3, 1 and the mean of 2 and 4
    assert found[1, 0, 3].tolist() == [10, 12, 14, 12]  # the fused token of tokens 0 and 2: the mean of rows 1 and 3


def test_its_tokens_train_and_travel() -> None:
    _, network = small("eva02_tiny_patch14_224")
    plan = without_tokens(plan_of(network.structure, 0.7), network.structure, "fuse")
    cut, x = network.pruned(plan, None), images(network)
    cut.module(x).sum().backward()
    assert all(p.grad is not None for name, p in cut.module.named_parameters() if name.endswith("weight"))
    arrived = pickle.loads(cloudpickle.dumps(network))
    assert torch.equal(arrived.pruned(plan, None).outputs(x), cut.outputs(x))


@pytest.mark.slow
def test_in_8_bits_the_file_answers_as_its_emulation(tmp_path: Path) -> None:
    _, network = small("eva02_tiny_patch14_224")
    plan = without_tokens(plan_of(network.structure, 0.8), network.structure, "fuse")
    cut = network.pruned(dataclasses.replace(plan, precision="int8"), None)
    cut.export(tmp_path / "model.onnx", 1)
    report = check_quantised(cut, tmp_path / "model.onnx", 1, Batch(images(network, 8), None, torch.arange(8)))
    assert report.quantised is not None and report.quantised.forced_same_answers is not None
    assert report.quantised.max_relative < 0.3


def test_recovery_helps_when_tokens_go() -> None:
    _, network = small("eva02_tiny_patch14_224")
    plan = without_tokens(plan_of(network.structure, 0.7), network.structure, "fuse", 0.9)
    x = images(network, 64)
    dense = network.outputs(x)
    lost = [(network.pruned(plan, given).outputs(x) - dense).norm() for given in (None, network.statistics(x))]
    assert lost[1] < 0.95 * lost[0]


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (TokenPlan(5, "merge", "middle", "similarity"), "merge"),
        (TokenPlan(5, "drop", "start"), "start"),
        (TokenPlan(5, "weighted", "middle", "selector"), "selector"),
    ],
)
def test_ways_that_a_graph_has_not_are_refused(tokens: TokenPlan, said: str) -> None:
    _, network = small("eva02_tiny_patch14_224")
    plan = identity(network.structure)
    blocks = (*plan.blocks[:2], dataclasses.replace(plan.blocks[2], tokens=tokens), plan.blocks[3])
    with pytest.raises(InvalidRequest, match=said):
        network.pruned(dataclasses.replace(plan, blocks=blocks), None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("swinv2_tiny_window8_256", "attend to each other|lays tokens out|not those that enter|not known"),
        ("tnt_s_legacy_patch16_224", "by its place"),
        ("crossvit_tiny_240", "no tensor"),
    ],
)
def test_where_the_grid_is_needed_no_token_goes(name: str, said: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    network = GraphNetwork(model, name, Preprocessing.of_model(model), 1000)
    assert not any(stage.free_tokens for stage in network.structure.stages)
    assert re.search(said, network._flow.reason)


def test_outputs_that_are_tokens_keep_them() -> None:
    model = timm.create_model("eva02_tiny_patch14_224", num_classes=0, global_pool="", img_size=56, depth=2).eval()
    network = GraphNetwork(model, "eva", Preprocessing.of_model(model), 0)
    assert not any(stage.free_tokens for stage in network.structure.stages)
    assert network._flow.reason == "the outputs have values for single tokens"
