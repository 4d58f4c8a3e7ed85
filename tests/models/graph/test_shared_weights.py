"""Tests of networks that use the same block several times: its weights are stored, counted and cut once."""

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from torch import Tensor, nn

from models.evaluation.parity import check_parity
from models.loading.load_graph import open_graph
from models.loading.load_onnx import open_onnx
from models.networks.network import Network
from tests.models.graph.test_onnx_forms import SHAPE, exported, of_file
from tests.support.plans import plan_of

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 5
HEADS = 3


def reused(biased: bool = True) -> Any:
    """Return a vision transformer that uses its only block three times."""
    torch.manual_seed(0)
    module: Any = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **{**SHAPE, "depth": 3})
    for block in module.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.2)
        nn.init.normal_(block.mlp.fc2.bias, std=0.2) if biased else None
    module.blocks[1] = module.blocks[2] = module.blocks[0]
    return module.eval()


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def opened(folder: Path, module: nn.Module) -> Network:
    return open_onnx(exported(folder / "shared.onnx", module), "shared", None)


def weights_in(path: Path) -> int:
    return sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer) // 4


@pytest.mark.parametrize("biased", [True, False])
def test_shared_weights_are_counted_and_stored_once(tmp_path: Path, biased: bool) -> None:
    module = reused(biased)
    network = opened(tmp_path, module)
    own = sum(parameter.numel() for parameter in module.parameters())
    tables = 3 * 10 * 48  # norms and biases that are all zeros or ones can be equal by chance: they are counted apart
    assert len(network.structure.blocks) == 1
    assert own <= network.structure.params <= own + tables
    network.export(tmp_path / "again.onnx", None)
    assert weights_in(tmp_path / "again.onnx") < own + 1000
    assert torch.allclose(of_file(tmp_path / "again.onnx", images()), module(images()), atol=1e-5)


def test_a_cut_changes_all_uses(tmp_path: Path) -> None:
    module = reused()
    network = opened(tmp_path, module)
    plan = plan_of(network.structure, 0.6)
    small = network.pruned(plan, None)
    heads = [head.v[0] // 16 for head in plan.blocks[0].heads]
    assert 0 < len(heads) < HEADS
    masked = copy.deepcopy(module)
    with torch.no_grad():
        for head in set(range(HEADS)) - set(heads):
            masked.blocks[0].attn.proj.weight[:, 16 * head : 16 * head + 16] = 0
        gone = [neuron for neuron in range(192) if neuron not in plan.blocks[0].neurons]
        masked.blocks[0].mlp.fc2.weight[:, gone] = 0
    assert torch.allclose(small.outputs(images()), masked(images()), atol=1e-5)
    assert small.structure.params < 0.75 * network.structure.params


def test_recovery_uses_the_inputs_of_all_uses(tmp_path: Path) -> None:
    module = reused()
    network = opened(tmp_path, module)
    plan = plan_of(network.structure, 0.8)
    statistics = network.statistics(images(64), kinds=["dependence"])
    small = network.pruned(plan, statistics)
    unseen = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        dense = module(unseen)
    errors = [float((one.outputs(unseen) - dense).norm()) for one in (small, network.pruned(plan, None))]
    assert errors[0] < 0.8 * errors[1]
    small.export(tmp_path / "small.onnx", None)
    assert check_parity(small, tmp_path / "small.onnx", 1, images(4)).passed
    assert weights_in(tmp_path / "small.onnx") <= small.structure.params


def test_equal_zeros_are_not_shared(tmp_path: Path) -> None:
    """Blocks with weights of their own, whose biases are all zero: each block is cut by itself."""
    torch.manual_seed(0)
    network = opened(tmp_path, timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **SHAPE))
    assert len(network.structure.blocks) == 2


def test_a_module_that_uses_a_block_twice(tmp_path: Path) -> None:
    network = open_graph(Behind(reused()), "twice", opened(tmp_path, reused()).preprocessing, CLASSES)
    assert len(network.structure.blocks) == 1
    assert torch.allclose(network.outputs(images()), reused()(images()), atol=1e-5)


class Behind(nn.Module):
    """The same network under another name, so that no family recognises it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits
