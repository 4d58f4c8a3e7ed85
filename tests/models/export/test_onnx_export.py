"""Tests of the exported file.

It gives the same outputs as PyTorch, holds standard operators only and carries its preprocessing.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from models.data.preprocessing import Preprocessing
from models.evaluation.parity import ParityReport, check_parity
from models.export.inference_blocks import FORMS
from models.export.onnx_export import compare_outputs, run_onnx
from models.export.torch_program import save_program
from models.structure import TokenPlan, identity
from tests.support.networks import VARIANTS, images_for, random_plan, small_network

ALLOWED = set(
    [
        "Add",
        "Range",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "Div",
        "Equal",
        "Erf",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "Gelu",
        "Gemm",
        "Identity",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Pow",
        "ReduceMean",
        "ReduceSum",
        "Reshape",
        "Shape",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "TopK",
        "Transpose",
        "Unsqueeze",
        "Where",
        "Cast",
    ]
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 3, None])
def test_parity_of_pruned_networks(variant: str, batch: int | None, tmp_path: Path) -> None:
    network = small_network(**VARIANTS[variant])
    small = network.pruned(random_plan(network.structure, 7, embed=True), None)
    path, images = tmp_path / "model.onnx", images_for(network, 6)
    small.export(path, batch)
    assert compare_outputs(small.outputs(images), run_onnx(path, images, batch or 2)).max_relative < 1e-4
    used = {node.op_type for node in onnx.load(path).graph.node}
    assert used <= ALLOWED, used - ALLOWED
    assert all(entry.domain in ("", "ai.onnx") for entry in onnx.load(path).opset_import)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 3, None])
def test_the_form_for_the_cpu_has_each_attention_as_one_operator(
    variant: str, batch: int | None, tmp_path: Path
) -> None:
    network = small_network(**VARIANTS[variant])
    small = network.pruned(random_plan(network.structure, 7, embed=True), None)
    path, images = tmp_path / "model.onnx", images_for(network, 6)
    small.export(path, batch, "cpu")
    assert compare_outputs(small.outputs(images), run_onnx(path, images, batch or 2)).max_relative < 1e-4
    nodes = onnx.load(path).graph.node
    fused = [node for node in nodes if (node.domain, node.op_type) == ("com.microsoft", "Attention")]
    watched = sum(block.watch is not None for block in small.pruned_blocks())
    apart = len(small.pruned_blocks()) if variant.startswith("q/k norm") else watched
    assert watched > 0 and len(fused) == len(small.pruned_blocks()) - apart
    assert sum(node.op_type == "Softmax" for node in nodes) == apart


def test_merged_tokens_keep_their_weight_in_the_form_for_the_cpu(tmp_path: Path) -> None:
    network = small_network()
    whole = identity(network.structure)
    merging = TokenPlan(20, "merge", score="similarity")
    plan = replace(whole, blocks=(replace(whole.blocks[0], tokens=merging), *whole.blocks[1:]))
    small, images = network.pruned(plan, None), images_for(network, 4)
    small.export(tmp_path / "model.onnx", 1, "cpu")
    assert compare_outputs(small.outputs(images), run_onnx(tmp_path / "model.onnx", images, 1)).max_relative < 1e-4


def test_exported_scales_stand_in_the_weights(tmp_path: Path) -> None:
    """The exported weights contain layer scale and the attention's scale, so the scales cost no operation.

    The network that was exported keeps its own scales.
    """
    network = small_network(init_values=0.3)
    before = network.outputs(images_for(network, 2))
    for form in FORMS:
        network.export(tmp_path / "model.onnx", 1, form)
        nodes = onnx.load(tmp_path / "model.onnx").graph.node
        assert not [node.name for node in nodes if node.op_type == "Mul" and "blocks" in node.name]
    assert torch.equal(network.outputs(images_for(network, 2)), before)


def test_a_fixed_batch_is_fixed_and_a_free_one_is_free(tmp_path: Path) -> None:
    network = small_network()
    for batch, expected in ((2, 2), (None, "batch")):
        network.export(tmp_path / "model.onnx", batch)
        dim = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0]
        assert (dim.dim_value or dim.dim_param) == expected


def test_preprocessing_stands_in_the_metadata(tmp_path: Path) -> None:
    network = small_network()
    network.export(tmp_path / "model.onnx", 1)
    found = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert Preprocessing.from_metadata(found) == network.preprocessing


def test_parity_report_counts_flipped_sets_and_forces_tokens(tmp_path: Path) -> None:
    network = small_network()
    small = network.pruned(random_plan(network.structure, 7), None)
    small.export(tmp_path / "model.onnx", 1)
    report = check_parity(small, tmp_path / "model.onnx", 1, images_for(network, 16))
    assert report.passed and report.flipped_sets == 0
    assert report.forced is not None and report.forced.max_relative < 1e-4
    dense = check_parity_of_dense(tmp_path)
    assert dense.forced is None and dense.flipped_sets is None


def check_parity_of_dense(folder: Path) -> ParityReport:
    network = small_network()
    network.export(folder / "dense.onnx", 1)
    return check_parity(network, folder / "dense.onnx", 1, images_for(network, 4))


def test_parity_fails_for_another_network(tmp_path: Path) -> None:
    network = small_network(seed=1)
    small_network(seed=2).export(tmp_path / "model.onnx", 1)
    assert not check_parity(network, tmp_path / "model.onnx", 1, images_for(network, 4)).passed


def test_forcing_really_changes_the_tokens() -> None:
    network = small_network()
    small, images = network.pruned(random_plan(network.structure, 7), None), images_for(network, 2)
    free = small.outputs(images)
    first = small.reductions()[0]
    last = torch.arange(first.patches - first.kept, first.patches).expand(2, -1)
    with first.forced_to(last):
        assert not torch.allclose(small.outputs(images), free)
    assert torch.equal(small.outputs(images), free)


TRAIN = """
import sys, torch
sys.modules["models"] = None; sys.modules["timm"] = None
module = torch.export.load(sys.argv[1]).module()
images, labels = torch.randn(8, 3, 48, 48), torch.arange(8) % 7
optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
losses = []
for _ in range(5):
    loss = torch.nn.functional.cross_entropy(module(images), labels)
    optimizer.zero_grad(); loss.backward(); optimizer.step(); losses.append(float(loss))
assert losses[-1] < losses[0], losses
torch.save(module(torch.ones(2, 3, 48, 48)), sys.argv[2])
"""


@pytest.mark.slow
def test_the_program_trains_on_where_vitfit_is_not_installed(tmp_path: Path) -> None:
    network = small_network()
    small = network.pruned(random_plan(network.structure, 7), None)
    save_program(small.module, small.structure.image, tmp_path / "program.pt2")
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "program.pt2"), str(tmp_path / "after.pt")]
    subprocess.run(command, check=True, cwd=tmp_path)
    after = torch.load(tmp_path / "after.pt", weights_only=True)
    assert not torch.allclose(after, small.outputs(torch.ones(2, 3, 48, 48)))
