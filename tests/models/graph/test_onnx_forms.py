"""Tests of the forms of ONNX files that exporters and people make. Each is read as what it is, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from transformers import SwinConfig, SwinForImageClassification

from models.errors import UnsupportedModel
from models.graph.onnx import operators
from models.graph.onnx.proof import prove_on_images
from models.loading.load_onnx import open_onnx
from models.networks.network import Network
from tests.support.plans import plan_of

SHAPE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
CLASSES = 5
Edit = Callable[[onnx.ModelProto], None]


class Wrapped(nn.Module):
    """A small vision transformer behind another first layer."""

    def __init__(self, first: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.vit = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **SHAPE)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.vit(self.first(images))
        return logits


def exported(
    path: Path, module: nn.Module, edit: Edit | None = None, opset: int = 17, free: tuple[int, ...] = (0,)
) -> Path:
    axes = {"images": {axis: f"d{axis}" for axis in free}, "logits": {0: "d0"}}
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
    example = torch.randn(2, 3, 32, 32)
    torch.onnx.export(module.eval(), (example,), str(path), dynamo=False, opset_version=opset, **names)
    if edit is not None:
        model = onnx.load(path)
        edit(model)
        onnx.save(model, path)
    return path


def of_file(path: Path, images: Tensor, output: str = "logits") -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([output], {session.get_inputs()[0].name: images.numpy()})[0])


def same(path: Path, network: Network, output: str = "logits") -> None:
    """Check that the network gives the outputs of the file, and that it can be made smaller."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    expected = of_file(path, images, output)
    torch.testing.assert_close(network.outputs(images), expected.reshape(4, -1), rtol=1e-4, atol=1e-5)
    small = network.pruned(plan_of(network.structure, 0.6), None)
    assert (
        small.structure.macs < network.structure.macs and small.outputs(images).shape == expected.reshape(4, -1).shape
    )


def behind(*nodes: onnx.NodeProto, constants: dict[str, Any] | None = None) -> Edit:
    """Return an edit that puts nodes between "inner", the output so far, and "logits"."""

    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["inner" if name == "logits" else name for name in node.output]
        for name, value in (constants or {}).items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        model.graph.node.extend(nodes)

    return edit


TAILS: dict[str, Edit] = {
    "Unsqueeze with negative axes": behind(
        helper.make_node("Unsqueeze", ["inner", "axes"], ["wide"]),
        helper.make_node("GlobalAveragePool", ["wide"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
        constants={"axes": np.array([-1, -2])},
    ),
    "Squeeze without axes": behind(
        helper.make_node("Unsqueeze", ["inner", "axes"], ["wide"]),
        helper.make_node("Squeeze", ["wide"], ["logits"]),
        constants={"axes": np.array([2, 3])},
    ),
    "Sum of three": behind(
        helper.make_node("Sum", ["inner", "inner", "one"], ["logits"]), constants={"one": np.ones(5, "f")}
    ),
    "Max of three": behind(
        helper.make_node("Max", ["inner", "one", "two"], ["logits"]),
        constants={"one": np.full(5, 0.1, "f"), "two": np.full(5, -0.1, "f")},
    ),
    "Tile": behind(helper.make_node("Tile", ["inner", "times"], ["logits"]), constants={"times": np.array([1, 2])}),
    "uneven Split without sizes": behind(
        helper.make_node("Split", ["inner"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["b", "a"], ["logits"], axis=1),
    ),
    "a function of onnx": behind(helper.make_node("Softplus", ["inner"], ["logits"])),
}


@pytest.mark.parametrize("name", TAILS)
def test_unusual_operators_behind_the_classifier_are_read_as_onnx_runtime_reads_them(tmp_path: Path, name: str) -> None:
    path = exported(tmp_path / "model.onnx", Wrapped(nn.Identity()), TAILS[name], opset=18)
    same(path, open_onnx(path, "vit", None))


STEMS: dict[str, Callable[[], Any]] = {
    "Cast to whole numbers": lambda: lambda x: (x * 4).to(torch.int64).float() / 4,
    "division of whole numbers": lambda: lambda x: ((x * 8).to(torch.int64) // 3).float(),
    "dilated MaxPool": lambda: nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, stride=1, padding=1, dilation=2)),
    "AveragePool": lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}


@pytest.mark.parametrize("name", STEMS)
def test_unusual_operators_before_the_blocks_are_read_as_onnx_runtime_reads_them(tmp_path: Path, name: str) -> None:
    path = exported(tmp_path / "model.onnx", Wrapped(STEMS[name]()))
    try:
        network = open_onnx(path, "vit", None)
    except UnsupportedModel as error:  # better refused than wrong
        assert name == "division of whole numbers", error
        return
    same(path, network)


@pytest.mark.parametrize("opset", [9, 11, 13, 16])
def test_old_opsets_are_converted(tmp_path: Path, opset: int) -> None:
    torch.manual_seed(0)
    vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **SHAPE)
    for block in vit.blocks:
        block.attn.fused_attn = False
    path = exported(tmp_path / "model.onnx", vit, opset=opset)
    same(path, open_onnx(path, "vit", None))


def test_attention_of_opset_23_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **SHAPE).eval()
    path = tmp_path / "model.onnx"
    free = {"x": {0: torch.export.Dim("batch", min=1, max=1024)}}
    program = torch.onnx.export(vit, (torch.randn(2, 3, 32, 32),), dynamo=True, opset_version=23, dynamic_shapes=free)
    assert program is not None
    program.save(str(path))
    model = onnx.load(path)
    assert "Attention" in {node.op_type for node in model.graph.node}
    same(path, open_onnx(path, "vit", None), model.graph.output[0].name)


def test_a_free_height_and_width_are_taken_from_the_preprocessing(tmp_path: Path) -> None:
    path = exported(tmp_path / "model.onnx", Wrapped(nn.Identity()), free=(0, 1, 2, 3))
    with pytest.raises(UnsupportedModel, match="--preprocessing"):
        open_onnx(path, "vit", None)
    same(path, open_onnx(path, "vit", {"size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}))


def test_the_output_with_one_row_for_each_image_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tokens = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
        model.graph.output.insert(0, helper.make_tensor_value_info(tokens.output[0], TensorProto.FLOAT, None))

    path = exported(tmp_path / "model.onnx", Wrapped(nn.Identity()), edit)
    network = open_onnx(path, "vit", None)
    same(path, network)
    assert any("several outputs" in said and "'logits'" in said for said in network.assumptions)


def test_a_bias_is_not_added_to_an_output_that_has_none(tmp_path: Path) -> None:
    """The product of the classifier is an output of its own, beside its sum with the bias."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SHAPE)
    weight, bias = np.random.default_rng(0).normal(size=(48, 5)).astype("f"), np.full(5, 3.0, "f")

    def edit(model: onnx.ModelProto) -> None:
        product = helper.make_node("MatMul", ["inner", "weight"], ["product"])
        behind(
            product,
            helper.make_node("Add", ["product", "bias"], ["logits"]),
            constants={"weight": weight, "bias": bias},
        )(model)
        model.graph.output.insert(0, helper.make_tensor_value_info("product", TensorProto.FLOAT, None))

    path = exported(tmp_path / "model.onnx", vit, edit)
    network = open_onnx(path, "vit", None)
    same(path, network, "product")


# The proof at the door


def test_a_wrong_translation_is_refused_and_its_node_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported(tmp_path / "model.onnx", Wrapped(nn.Sigmoid()))
    monkeypatch.setitem(operators.OPERATORS, "Sigmoid", operators.OPERATORS["Tanh"])
    with pytest.raises(UnsupportedModel, match=r"Sigmoid.*report this file") as caught:
        open_onnx(path, "vit", None)
    assert caught.value.facts["operator"] == "Sigmoid"


def test_real_images_show_what_noise_hides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A translation that is wrong above the range of noise only."""
    path = exported(tmp_path / "model.onnx", Wrapped(nn.Hardtanh(-50.0, 50.0)))

    def forgets(build: Any, names: list[str], attributes: dict[str, Any]) -> Any:
        return build.value(names[0])

    monkeypatch.setitem(operators.OPERATORS, "Clip", forgets)
    network = open_onnx(path, "vit", None)
    prove_on_images(path, network, torch.randn(4, 3, 32, 32))
    with pytest.raises(UnsupportedModel, match="other outputs"):
        prove_on_images(path, network, 200 * torch.randn(4, 3, 32, 32))


def test_a_table_that_is_repeated_for_each_image_serves_any_number_of_images(tmp_path: Path) -> None:
    """Swin of transformers: its masks have one row for each window of each image, and are constant in the file."""
    torch.manual_seed(0)
    windows: dict[str, Any] = {"image_size": 64, "patch_size": 4, "window_size": 4, "num_labels": CLASSES}
    config = SwinConfig(embed_dim=24, depths=[2, 2], num_heads=[2, 4], **windows)
    module: Any = SwinForImageClassification(config)
    module.eval()
    axes = {"images": {0: "n"}, "logits": {0: "n"}}
    path = tmp_path / "swin.onnx"
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
    torch.onnx.export(module, (torch.rand(2, 3, 64, 64),), str(path), dynamo=False, opset_version=17, **names)
    network = open_onnx(path, "swin", None)
    for count in (1, 3):
        images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
        assert torch.allclose(network.outputs(images), of_file(path, images), atol=1e-4)
        network.export(tmp_path / "again.onnx", None)
        assert torch.allclose(of_file(tmp_path / "again.onnx", images), of_file(path, images), atol=1e-4)
