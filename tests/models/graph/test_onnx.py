"""Tests of ONNX files as models."""

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from models.errors import DamagedFile, InvalidRequest, UnsafeFile, UnsupportedModel, VitfitError
from models.loading.load_model import open_model, untrained
from models.loading.load_onnx import open_onnx
from models.networks.network import Network
from tests.support.plans import plan_of

pytestmark = pytest.mark.usefixtures("one_thread")


def exported(path: Path, network: Network, batch: int | None = 1, opset: int = 17, dynamo: bool = False) -> Path:
    axes: dict[str, Any] = {} if batch else {"dynamic_axes": {"images": {0: "n"}, "logits": {0: "n"}}}
    if dynamo and not batch:
        axes = {"dynamic_shapes": ({0: torch.export.Dim("n")},)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.zeros(batch or 2, *network.structure.image)
        torch.onnx.export(
            network.module,
            (x,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            opset_version=opset,
            dynamo=dynamo,
            **axes,
        )
    return path


def small(name: str = "deit_tiny_patch16_224") -> Network:
    return untrained(name, depth=2, img_size=64, num_classes=7)


@pytest.mark.parametrize("batch", [1, 4, None])
def test_pruned_from_the_file_as_from_pytorch(tmp_path: Path, batch: int | None) -> None:
    network = small()
    read = open_onnx(exported(tmp_path / "model.onnx", network, batch), "read", None)
    x = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(read.outputs(x), network.outputs(x), atol=1e-5)
    assert read.structure.macs == network.structure.macs and read.structure.classes == 7
    results = [one.pruned(plan_of(one.structure, 0.6), one.statistics(x)).outputs(x[:3]) for one in (network, read)]
    assert torch.allclose(results[0], results[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, None])
def test_the_newer_exporter_s_files_too(tmp_path: Path, batch: int | None) -> None:
    network = small()
    read = open_onnx(exported(tmp_path / "model.onnx", network, batch, opset=20, dynamo=True), "read", None)
    x = torch.randn(3, 3, 64, 64)
    assert torch.allclose(read.outputs(x), network.outputs(x), atol=1e-5)
    assert len(read.structure.blocks) == 2


@pytest.mark.parametrize(
    "name", ["levit_128s", "pvt_v2_b0", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)]
)
def test_other_architectures(tmp_path: Path, name: str) -> None:
    network = untrained(name)
    read = open_onnx(exported(tmp_path / "model.onnx", network), name, None)
    x = torch.randn(1, *network.structure.image)
    assert torch.allclose(read.outputs(x), network.outputs(x), atol=1e-4)
    assert len(read.structure.blocks) == len(network.structure.blocks)


def test_our_own_files_are_taken_again_with_their_preprocessing(tmp_path: Path) -> None:
    network = small()
    network.export(tmp_path / "model.onnx", None)
    read = open_onnx(tmp_path / "model.onnx", "again", None)
    assert read.preprocessing == network.preprocessing and len(read.structure.blocks) == 2


def test_a_file_of_one_image_that_would_mix_several_is_refused(tmp_path: Path) -> None:
    """In vitfit's own files for one image, the tokens are rows.

    With two images, all rows would attend to each other.
    """
    small().export(tmp_path / "model.onnx", 1)
    with pytest.raises(UnsupportedModel, match=r"mix the values of several.*model.dynamic.onnx"):
        open_onnx(tmp_path / "model.onnx", "one", None)


def edited(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def half(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("float16"), tensor.name))


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 4]))


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node[3].domain = "com.example"


def newer(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def looping(model: onnx.ModelProto) -> None:
    model.graph.node[3].op_type = "Loop"


def quantised(model: onnx.ModelProto) -> None:
    model.graph.node[3].op_type = "QuantizeLinear"


def unknown(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Hardmax"


def free_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (half, "export it in fp32"),
        (second_input, "2 inputs"),
        (foreign, "com.example"),
        (newer, "opset 99"),
        (looping, "control flow"),
        (quantised, "already quantised"),
        (unknown, "Hardmax"),
        (free_size, "height and width are free"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_what_is_in_the_way(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], says: str
) -> None:
    file = edited(exported(tmp_path / "model.onnx", small()), change)
    with pytest.raises(UnsupportedModel, match=says) as refused:
        open_onnx(file, "refused", None)
    assert refused.value.facts["reasons"]


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    whole = exported(tmp_path / "model.onnx", small()).read_bytes()
    for content in (b"", b"\x00\x01garbage", whole[: len(whole) // 2]):
        (tmp_path / "broken.onnx").write_bytes(content)
        with pytest.raises(DamagedFile):
            open_onnx(tmp_path / "broken.onnx", "broken", None)


def with_data(folder: Path) -> Path:
    folder.mkdir()
    model = onnx.load(exported(folder / "model.onnx", small()))
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    return folder


def test_external_data_come_in_the_same_zip(tmp_path: Path) -> None:
    source, folder = with_data(tmp_path / "source"), tmp_path / "model"
    folder.mkdir()
    with zipfile.ZipFile(folder / "model.zip", "w") as packed:
        for file in ("model.onnx", "model.data"):
            packed.write(source / file, f"exported/{file}")
    (folder / "model.json").write_text(json.dumps({"name": "mine"}))
    network = open_model(folder)
    assert network.structure.name == "mine" and len(network.structure.blocks) == 2


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname", "missing.data"])
def test_external_data_outside_of_the_upload_are_refused(tmp_path: Path, location: str) -> None:
    folder = with_data(tmp_path / "source")
    (tmp_path / "outside.data").write_bytes((folder / "model.data").read_bytes())
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeFile, match="not in the upload"):
        open_onnx(folder / "model.onnx", "outside", None)


def test_a_zip_of_something_else_says_what_is_needed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as packed:
        packed.writestr("readme.txt", "hello")
    (tmp_path / "model.json").write_text(json.dumps({"name": "mine"}))
    with pytest.raises(InvalidRequest, match=r"readme.txt. It must hold one \.onnx file"):
        open_model(tmp_path)


def test_a_zip_that_climbs_out_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "model.zip", "w") as packed:
        packed.writestr("../escaped.onnx", "hello")
    (tmp_path / "in" / "model.json").write_text(json.dumps({"name": "mine"}))
    with pytest.raises(VitfitError):
        open_model(tmp_path / "in")
    assert not (tmp_path / "escaped.onnx").exists() and sorted(p.name for p in (tmp_path / "in").iterdir()) == [
        "model.json",
        "model.zip",
    ]
