"""Tests of inputs and outputs: a delivered file has their names, number and types from the file handed in."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from models.errors import InvalidRequest, UnsupportedModel
from models.evaluation.metrics import correct
from models.export.onnx_export import run_onnx
from models.export.rename_values import rename_values
from models.graph.onnx import operators
from models.loading.load_model import open_model
from models.loading.load_onnx import open_onnx
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork
from models.structure import Plan
from tests.models.graph.test_onnx_forms import CLASSES, SHAPE
from tests.support.plans import plan_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Several(nn.Module):
    """A vision transformer that gives its tokens, its logits, its features and its class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **SHAPE)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tokens = self.vit.forward_features(images)
        logits = self.vit.forward_head(tokens)
        return tokens, logits, tokens[:, 0].sigmoid(), logits.argmax(1)


OUTPUTS = ("tokens", "scores", "embedding", "class")


def file_of(folder: Path, module: nn.Module | None = None, outputs: tuple[str, ...] = OUTPUTS) -> Path:
    path = folder / "handed.onnx"
    axes = {"pixel_values": {0: "n"}, **{name: {0: "n"} for name in outputs}}
    torch.onnx.export(
        (module or Several()).eval(),
        (torch.randn(2, 3, 32, 32),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["pixel_values"],
        output_names=list(outputs),
        dynamic_axes=axes,
    )
    return path


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def all_of(path: Path) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.name == "pixel_values"
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {entry.name: images().numpy()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


def halved(network: Network) -> Network:
    return network.pruned(plan_of(network.structure, 0.5), network.statistics(images(32)))


def test_all_outputs_are_kept_with_their_names_and_order(tmp_path: Path) -> None:
    handed = file_of(tmp_path)
    network = open_onnx(handed, "several", None)
    network.export(tmp_path / "same.onnx", None)
    expected, got = all_of(handed), all_of(tmp_path / "same.onnx")
    assert list(got) == list(expected) == list(OUTPUTS)
    for name in OUTPUTS:
        assert expected[name].dtype == got[name].dtype and expected[name].shape == got[name].shape
        assert torch.allclose(expected[name].float(), got[name].float(), atol=1e-4)
    assert torch.allclose(network.outputs(images()), expected["scores"], atol=1e-4)  # the first with one row an image
    assert "judges 'scores'" in network.assumptions[-1]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_smaller_file_has_all_outputs_too(tmp_path: Path, precision: str) -> None:
    network = open_onnx(file_of(tmp_path), "several", None)
    plan: Plan = dataclasses.replace(plan_of(network.structure, 0.5), precision=precision)  # type: ignore[arg-type]
    small = network.pruned(plan, network.statistics(images(32)))
    assert small.structure.macs < 0.7 * network.structure.macs
    small.export(tmp_path / "small.onnx", None)
    found = all_of(tmp_path / "small.onnx")
    assert list(found) == list(OUTPUTS)
    assert torch.equal(found["class"], found["scores"].argmax(1))
    assert torch.equal(run_onnx(tmp_path / "small.onnx", images(), 4), found["scores"])  # the judged one, not the first
    assert (found["scores"] - small.outputs(images())).abs().max() < (1e-4 if precision == "fp32" else 0.2)


def test_tokens_that_are_an_output_are_never_removed(tmp_path: Path) -> None:
    network = open_onnx(file_of(tmp_path), "several", None)
    assert not any(stage.free_tokens for stage in network.structure.stages)


def test_fewer_outputs_on_request(tmp_path: Path) -> None:
    network = open_onnx(file_of(tmp_path), "several", None, outputs=["scores"])
    assert isinstance(network, TorchNetwork)  # with the logits alone it is a plain vision transformer
    assert "tokens, embedding, class" in network.assumptions[-1]
    network.export(tmp_path / "one.onnx", 1)
    assert [output.name for output in onnx.load(tmp_path / "one.onnx").graph.output] == ["scores"]
    with pytest.raises(InvalidRequest, match=r"'logits'.*'tokens', 'scores', 'embedding', 'class'"):
        open_onnx(file_of(tmp_path), "several", None, outputs=["logits"])


def test_a_plain_transformer_keeps_its_names(tmp_path: Path) -> None:
    module = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **SHAPE)
    network = open_onnx(file_of(tmp_path, module, ("scores",)), "plain", None)
    assert isinstance(network, TorchNetwork)
    halved(network).export(tmp_path / "small.onnx", None)
    assert list(all_of(tmp_path / "small.onnx")) == ["scores"]


def test_the_proof_compares_every_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the third output, which is not judged, goes through a wrong translation."""
    path = file_of(tmp_path)
    monkeypatch.setitem(operators.OPERATORS, "Sigmoid", operators.OPERATORS["Tanh"])
    with pytest.raises(UnsupportedModel, match="Sigmoid"):
        open_onnx(path, "several", None)


class Ending(nn.Module):
    """A vision transformer whose logits go through an activation."""

    def __init__(self, end: nn.Module, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **SHAPE)
        self.end = end

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.end(4 * self.vit(images))
        return scores


@pytest.mark.parametrize(
    ("end", "classes", "said"),
    [(nn.Softmax(-1), 5, "softmax"), (nn.Sigmoid(), 5, "sigmoid"), (nn.Sigmoid(), 1, "sigmoid")],
)
def test_probabilities_are_judged_as_the_logits_that_give_them(
    tmp_path: Path, end: nn.Module, classes: int, said: str
) -> None:
    module = Ending(end, classes).eval()
    network = open_onnx(file_of(tmp_path, module, ("scores",)), "ending", None)
    assert said in network.assumptions[-1]
    with torch.inference_mode():
        logits, scores = 4 * module.vit(images()), module(images())
    got = network.outputs(images())
    if said == "softmax":
        assert torch.allclose(got, logits.log_softmax(-1), atol=1e-4)
    else:
        assert torch.allclose(got, logits, atol=1e-3)
    network.export(tmp_path / "same.onnx", None)
    assert torch.allclose(all_of(tmp_path / "same.onnx")["scores"], scores, atol=1e-5)  # the file gives probabilities
    assert torch.allclose(run_onnx(tmp_path / "same.onnx", images(), 4), got, atol=1e-3)  # vitfit reads logits
    labels = (logits > 0).long()[:, 0] if classes == 1 else logits.argmax(1)
    assert correct(got, labels) == len(labels)


def test_features_between_0_and_1_are_no_probabilities(tmp_path: Path) -> None:
    module = Ending(nn.Sigmoid(), 5).eval()
    network = open_onnx(file_of(tmp_path, module, ("embedding",)), "ending", None)
    assert network.structure.classes == 0
    with torch.inference_mode():
        assert torch.allclose(network.outputs(images()), module(images()), atol=1e-5)


def test_the_option_outputs_of_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    file_of(tmp_path).rename(folder / "model.onnx")

    def opened(options: dict[str, Any]) -> Network:
        (folder / "model.json").write_text(json.dumps({"name": "several", "options": options}))
        return open_model(folder)

    assert opened({"outputs": ["scores"]}).signature.outputs == ("scores",)
    assert opened({}).signature.outputs == OUTPUTS
    with pytest.raises(InvalidRequest, match="must be a list of names"):
        opened({"outputs": "scores"})
    with pytest.raises(InvalidRequest, match="options img_size have no effect"):
        opened({"img_size": 64})


@pytest.mark.parametrize(
    "names", [("x.1", "290"), ("output_0", "images"), ("images", "/blocks.0/attn/Softmax_output_0")]
)
def test_names_that_an_exporter_chose(tmp_path: Path, names: tuple[str, str]) -> None:
    """Exporters number values that have no name. Any name is kept, also one that a value inside has."""
    path = file_of(tmp_path, timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **SHAPE), ("scores",))
    model = onnx.load(path)
    rename_values(model, {"pixel_values": names[0], "scores": names[1]})
    onnx.save(model, path)
    network = open_onnx(path, "numbered", None)
    network.export(tmp_path / "same.onnx", None)
    found = onnx.load(tmp_path / "same.onnx").graph
    assert (found.input[0].name, found.output[0].name) == names
    assert torch.allclose(run_onnx(tmp_path / "same.onnx", images(), 4), network.outputs(images()), atol=1e-4)
