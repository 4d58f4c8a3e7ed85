"""Tests of fp16 files: their content, and an emulation in PyTorch that gives the same outputs as the file."""

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto

from models.data.dataset import Batch
from models.evaluation.parity import check_quantised
from models.export.onnx_export import compare_outputs, run_onnx
from models.graph.network import GraphNetwork
from models.loading.load_model import open_model
from models.networks.network import Network
from models.structure import identity
from tests.support.families import family_plan, small_family
from tests.support.networks import images_for, random_plan, small_network

DIGITS = Path(__file__).parents[3] / "benchmarks" / "digits"

pytestmark = pytest.mark.usefixtures("one_thread")


def in_half(network: Network, seed: int = 1) -> Network:
    return network.pruned(dataclasses.replace(random_plan(network.structure, seed), precision="fp16"), None)


def test_the_file_is_fp16_but_for_images_and_answers(tmp_path: Path) -> None:
    small = in_half(small_network())
    small.export(tmp_path / "half.onnx", 1)
    small.exact().export(tmp_path / "whole.onnx", 1)
    model = onnx.load(tmp_path / "half.onnx")
    assert {t.data_type for t in model.graph.initializer if t.data_type != TensorProto.INT64} == {TensorProto.FLOAT16}
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert {node.domain for node in model.graph.node} == {""}
    kinds = (TensorProto.FLOAT16, TensorProto.FLOAT)
    half, whole = (
        sum(len(t.raw_data) for t in onnx.load(tmp_path / name).graph.initializer if t.data_type in kinds)
        for name in ("half.onnx", "whole.onnx")
    )
    assert half == pytest.approx(whole / 2, rel=0.01)
    assert small.structure.weight_bytes == small.exact().structure.weight_bytes / 2


@pytest.mark.parametrize("variant", ["plain", "swin", "pvt_v2", "graph"])
def test_the_file_gives_what_the_emulation_gives(variant: str, tmp_path: Path) -> None:
    network: Network
    if variant in ("swin", "pvt_v2"):
        network = small_family(variant)
        plan = family_plan(network.structure, 1)
    else:
        network = small_network()
        if variant == "graph":
            network = GraphNetwork(network.module, "graph", network.preprocessing, network.structure.classes)
        plan = family_plan(network.structure, 1) if variant == "graph" else random_plan(network.structure, 1)
    small = network.pruned(dataclasses.replace(plan, precision="fp16"), None)
    x = images_for(small, 8)
    for batch in (1, None):
        small.export(tmp_path / "half.onnx", batch)
        got = run_onnx(tmp_path / "half.onnx", x, batch or 4)
    exact, emulated = small.exact().outputs(x), small.outputs(x)
    apart = compare_outputs(exact, emulated).max_relative
    assert 1e-5 < apart < 0.02  # the emulation rounds, and it rounds to fp16
    assert compare_outputs(emulated, got).max_relative < max(2 * apart, 0.01)


def test_both_are_checked_with_the_same_tokens(tmp_path: Path) -> None:
    network = open_model(DIGITS)
    small = in_half(network, 2)
    assert small.reductions()
    small.export(tmp_path / "half.onnx", 1)
    images = images_for(small, 64)
    report = check_quantised(small, tmp_path / "half.onnx", 1, Batch(images, None, torch.arange(64)))
    assert report.passed and report.quantised is not None and report.quantised.forced_same_answers == 1.0


def test_parameters_that_do_not_fit_are_the_largest_that_does_in_both(tmp_path: Path) -> None:
    network = small_network()
    with torch.no_grad():
        network.module.get_parameter("head.weight")[0, 0] = 1e5
    plan = dataclasses.replace(identity(network.structure), precision="fp16")
    small, x = network.pruned(plan, None), images_for(network, 4)
    small.export(tmp_path / "half.onnx", 1)
    emulated = small.outputs(x)
    assert compare_outputs(emulated, run_onnx(tmp_path / "half.onnx", x, 1)).max_relative < 0.01
    assert compare_outputs(emulated, small.exact().outputs(x)).max_relative > 0.1
    assert float(small.module.get_parameter("head.weight").detach()[0, 0]) == 1e5


def test_activations_that_do_not_fit_are_seen_in_trials() -> None:
    network = small_network()
    with torch.no_grad():
        network.blocks()[0].get_parameter("mlp.fc2.bias").fill_(1e5)
    x = images_for(network, 2)
    assert network.outputs(x).isfinite().all() and not in_half(network).outputs(x).isfinite().all()
