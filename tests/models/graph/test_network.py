"""Tests of graph models: vitfit prunes them by their graphs."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import timm
import torch
from torch import Tensor, nn

from models.data.preprocessing import Preprocessing
from models.errors import InvalidRequest, UnsupportedModel
from models.export.onnx_export import compare_outputs, run_onnx
from models.export.torch_program import save_program
from models.graph.linear_layers import member_columns, reader_weight, write_reader
from models.graph.network import GraphNetwork
from models.loading.load_model import network_of, untrained
from models.structure import identity
from tests.support.counted import differs
from tests.support.plans import plan_of

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = {
    "vit_srelpos_small_patch16_224": "one table of positions for the heads of all blocks",
    "eva02_tiny_patch14_224": "rotary positions, gated MLP",
    "xcit_nano_12_p16_224": "attention over channels",
    "levit_128s": "batch norms, q narrower than v, tables of positions",
    "swinv2_tiny_window8_256": "shifted windows, cosine attention, positions by a small MLP",
    "cait_xxs24_224": "layers between heads",
    "mvitv2_tiny": "pooled q, k and v, positions by einsum",
}


def shaken(name: str) -> GraphNetwork:
    """Return a model with random weights everywhere.

    The weights of a new model contain zeros, which would hide missing parts.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return GraphNetwork(model.eval(), name, Preprocessing.of_model(model), 10)


def images(network: GraphNetwork, count: int = 2) -> Tensor:
    return torch.randn(count, *network.structure.image, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name",
    [
        "vit_srelpos_small_patch16_224",
        "levit_128s",
        *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES),
    ],
)
def test_a_cut_network_gives_what_the_whole_gives_when_nobody_reads_the_members(name: str) -> None:
    """Check that exactly the members in question are removed.

    The original gives the same outputs when the columns that read these members are zero.
    """
    network = shaken(name)
    plan = plan_of(network.structure, 0.7)
    cut = network.pruned(plan, None).outputs(images(network))
    traced = network._traced
    for block, wanted in zip(network._blocks, plan.blocks, strict=True):
        for half, kept in (
            (block.heads, {h.v[0] // len(h.v) for h in wanted.heads}),
            (block.neurons, set(wanted.neurons)),
        ):
            columns = member_columns(traced, half)
            each = len(columns) // half.atom.size
            gone = [column for i, column in enumerate(columns) if i // each not in kept]
            weight, _ = reader_weight(traced.graph, half.reader)
            weight = weight.clone()
            weight[:, gone] = 0
            write_reader(traced.graph, half.reader, weight, None)
    assert torch.allclose(cut, network.outputs(images(network)), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(cut, shaken(name).outputs(images(network)), atol=1e-3)


@pytest.mark.parametrize(
    "name", [*list(NAMES)[:3], *(pytest.param(n, marks=pytest.mark.slow) for n in list(NAMES)[3:])]
)
def test_macs_and_parameters_are_torch_s_own_before_and_after(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    network = network_of(model.eval(), name, Preprocessing.of_model(model))
    assert isinstance(network, GraphNetwork)
    small = network.pruned(plan_of(network.structure, 0.7), None)
    assert differs(network, model) == [] and differs(small, small.module) == []
    assert small.structure.macs < 0.85 * network.structure.macs


@pytest.mark.slow
def test_it_trains_exports_and_runs_in_any_batch(tmp_path: Path) -> None:
    network = shaken("levit_128s")
    small = network.pruned(plan_of(network.structure, 0.6), None)
    small.module(images(network)).sum().backward()
    assert all(p.grad is not None for name, p in small.module.named_parameters() if name.endswith("weight"))
    x = images(network, 5)
    for batch in (1, None):
        small.export(tmp_path / "model.onnx", batch)
        assert compare_outputs(small.outputs(x), run_onnx(tmp_path / "model.onnx", x, batch or 5)).max_relative < 1e-4
    save_program(small.module, network.structure.image, tmp_path / "program.pt2")
    again = torch.export.load(tmp_path / "program.pt2").module()
    assert torch.allclose(again(x), small.outputs(x), atol=1e-5)


def test_the_graph_way_and_the_family_way_leave_the_same_network() -> None:
    family = untrained("deit_tiny_patch16_224", depth=2, img_size=64)
    graph = GraphNetwork(family.module, "deit", family.preprocessing, family.structure.classes)
    x = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    found = []
    for network in (family, graph):
        plan = plan_of(network.structure, 0.6)
        found.append(network.pruned(plan, network.statistics(x)).outputs(x[:2]))
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert graph.structure.macs == family.structure.macs and graph.structure.params == family.structure.params


def test_re_fitting_undoes_the_loss_of_a_head_that_has_a_twin() -> None:
    network = untrained("deit_tiny_patch16_224", depth=1, img_size=64)
    block: Any = network.module.get_submodule("blocks.0")
    with torch.no_grad():
        for rows in block.attn.qkv.weight.view(3, 3, 64, -1), block.attn.qkv.bias.view(3, 3, 64):
            rows[:, 2] = rows[:, 0]
    graph = GraphNetwork(network.module, "deit", network.preprocessing, network.structure.classes)
    x = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    whole = identity(graph.structure)
    plan = dataclasses.replace(whole, blocks=(dataclasses.replace(whole.blocks[0], heads=whole.blocks[0].heads[:2]),))
    dense, bare = graph.outputs(x), graph.pruned(plan, None).outputs(x)
    recovered = graph.pruned(plan, graph.statistics(x)).outputs(x)
    assert (recovered - dense).norm() < 0.05 * (bare - dense).norm()


def test_whole_blocks_and_unknown_statistics_are_refused() -> None:
    network = untrained("levit_128s")
    assert isinstance(network, GraphNetwork)
    plan = identity(network.structure)
    with pytest.raises(InvalidRequest, match="must keep all blocks"):
        network.pruned(dataclasses.replace(plan, blocks=plan.blocks[1:]), None)
    with pytest.raises(InvalidRequest, match="joint"):
        network.check_kinds({"taylor"})


def test_a_network_without_attention_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedModel) as refused:
        untrained("resnet10t")
    assert "no attention and MLP whose heads and neurons can be cut" in refused.value.facts["reasons"]


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)) if x.sum() > 0 else x.amax((1, 2, 3))


def test_a_forward_that_decides_by_values_is_refused() -> None:
    preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UnsupportedModel, match="cannot capture"):
        GraphNetwork(Deciding(), "deciding", preprocessing, 0)


def test_it_travels_to_other_processes_and_is_cut_there_as_here() -> None:
    network = shaken("levit_128s")
    arrived = pickle.loads(cloudpickle.dumps(network))
    plan = plan_of(network.structure, 0.6)
    x = images(network)
    assert torch.equal(arrived.pruned(plan, None).outputs(x), network.pruned(plan, None).outputs(x))


class Odd(nn.Module):
    """A model that multiplies a plain network by a factor. No rule describes the operators that compute this factor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.vector = network, nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.matmul(x, self.vector).mean((1, 2))  # a product with one dim
        out: Tensor = self.network(x) * torch.sigmoid(scale)[:, None]
        return out


def test_what_no_rule_knows_costs_members_and_never_a_wrong_cut() -> None:
    plain = untrained("deit_tiny_patch16_224", depth=2, img_size=64)
    network = GraphNetwork(Odd(plain.module), "odd", plain.preprocessing, 1000)
    assert len(network.structure.blocks) == 2
    small = network.pruned(plan_of(network.structure, 0.5), None)
    x = images(network)
    expected = plain.pruned(plan_of(plain.structure, 0.5), None).outputs(x)
    scale = torch.sigmoid(torch.matmul(x, torch.ones(64)).mean((1, 2)))
    assert torch.allclose(small.outputs(x), expected * scale[:, None], atol=1e-5)
