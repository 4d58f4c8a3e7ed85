"""Tests of graphs that vitfit recognises as plain vision transformers."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from models.data.preprocessing import Preprocessing
from models.graph.network import GraphNetwork
from models.loading.load_hugging_face import open_hugging_face
from models.loading.load_model import network_of
from models.loading.load_onnx import open_onnx
from models.networks.torch_network import TorchNetwork
from tests.models.graph.test_onnx import exported
from tests.support.networks import VARIANTS, images_for, random_plan, small_network

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = {name: options for name, options in VARIANTS.items() if "qk_norm" not in options}


@pytest.mark.parametrize("opset", [14, 17])
@pytest.mark.parametrize("variant", PLAIN)
def test_dims_and_tokens_are_cut_from_the_file_as_from_pytorch(tmp_path: Path, variant: str, opset: int) -> None:
    network = small_network(**PLAIN[variant])
    read = open_onnx(exported(tmp_path / "model.onnx", network, None, opset), "read", None)
    assert not isinstance(read, GraphNetwork)
    images = images_for(network, 24)
    assert torch.allclose(read.outputs(images), network.outputs(images), atol=1e-4)
    assert read.structure.macs == network.structure.macs
    assert (read.structure.prefix, read.structure.classes) == (network.structure.prefix, 7)
    plan = random_plan(network.structure, 0, embed="pre-norm" not in variant)
    results = [one.pruned(plan, one.statistics(images)).outputs(images[:3]) for one in (network, read)]
    assert torch.allclose(results[0], results[1], atol=1e-4 * float(results[0].abs().max()))


def test_a_distillation_token_has_its_own_head(tmp_path: Path) -> None:
    network = small_network(name="deit_tiny_distilled_patch16_224")
    read = open_onnx(exported(tmp_path / "model.onnx", network), "read", None)
    assert type(read.module) is type(network.module)
    images = images_for(network, 4)
    assert torch.allclose(read.outputs(images), network.outputs(images), atol=1e-4)


def test_without_a_classifier_it_gives_features_whatever_its_output_is_called(tmp_path: Path) -> None:
    """`exported` calls the output `logits`, but a transformer that ends in its norm has no classes."""
    network = small_network(num_classes=0)
    read = open_onnx(exported(tmp_path / "model.onnx", network), "read", None)
    assert isinstance(read, TorchNetwork) and read.structure.classes == 0
    images = images_for(network, 4)
    assert torch.allclose(read.outputs(images), network.outputs(images), atol=1e-4)


def test_it_trains(tmp_path: Path) -> None:
    read = open_onnx(exported(tmp_path / "model.onnx", small_network()), "read", None)
    read.module(images_for(read, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in read.module.parameters())


@pytest.mark.parametrize("scaled", ["torch", "by hand"])
def test_queries_and_keys_come_back_as_they_were(tmp_path: Path, scaled: str) -> None:
    network = small_network()
    blocks: list[Any] = network.blocks()
    for block in blocks:
        block.attn.fused_attn = scaled == "torch"
    read = open_onnx(exported(tmp_path / "model.onnx", network), "read", None)
    mine, theirs = (
        {name: value for name, value in one.module.named_parameters() if ".qkv." in name} for one in (network, read)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-5) for name in mine)


def test_what_is_not_plain_goes_by_its_graph(tmp_path: Path) -> None:
    network = small_network(qk_norm=True)
    read = open_onnx(exported(tmp_path / "model.onnx", network), "read", None)
    assert isinstance(read, GraphNetwork) and "embed" in read.structure.fixed


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "DeiTForImageClassification", "Dinov2Model", "CLIPVisionModel"]
)
def test_hugging_face_s_plain_ones_lose_tokens(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    from tests.models.loading.test_load_hugging_face import folder_of

    folder, _ = folder_of(name, tmp_path)
    network = open_hugging_face(folder, name, None)
    assert type(network) is TorchNetwork
    small = network.pruned(random_plan(network.structure, 1), network.statistics(images_for(network, 12)))
    assert small.reductions() and small.structure.macs < network.structure.macs
    assert torch.isfinite(small.outputs(images_for(network, 2))).all()


def test_rotary_positions_are_seen_even_where_they_hardly_matter() -> None:
    """New weights make tiny logits, so positions hardly change the outputs. They still make another network."""
    module = timm.create_model("vit_small_patch16_dinov3", img_size=32, depth=2, embed_dim=48, num_heads=3).eval()
    assert isinstance(network_of(module, "rotary", Preprocessing.of_model(module)), GraphNetwork)
