"""Tests of ONNX files that are larger than protobuf allows. A lower limit makes small files count as large."""

from pathlib import Path

import onnx
import pytest
import torch

from models.data.preprocessing import Preprocessing
from models.export import onnx_store
from models.export.onnx_export import export_onnx, run_onnx
from models.export.onnx_store import LARGEST, bytes_of, copy_onnx, data_of, files_of
from models.loading.load_onnx import open_onnx
from tests.support.networks import images_for, in_int8, random_plan, small_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_store, "LARGEST", 100_000)


@pytest.mark.usefixtures("little_room")
def test_the_weights_lie_beside_the_graph_and_move_with_it(tmp_path: Path) -> None:
    network = small_network()
    source, target = tmp_path / "source.onnx", tmp_path / "elsewhere" / "model.onnx"
    target.parent.mkdir()
    network.export(source, 1)
    assert files_of(source) == [source, data_of(source)] and list(tmp_path.glob(".*")) == []
    assert source.stat().st_size < 100_000 < bytes_of(source)
    copy_onnx(source, target)
    data_of(source).unlink()
    images = images_for(network, 2)
    assert torch.allclose(run_onnx(target, images, 1), network.outputs(images), atol=1e-4)


@pytest.mark.usefixtures("little_room")
def test_what_shrinks_below_the_limit_leaves_no_data_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    network.export(tmp_path / "model.onnx", 1)
    assert data_of(tmp_path / "model.onnx").exists()
    monkeypatch.setattr(onnx_store, "LARGEST", 10**9)
    network.export(tmp_path / "model.onnx", 1)
    assert files_of(tmp_path / "model.onnx") == [tmp_path / "model.onnx"]
    onnx.checker.check_model(tmp_path / "model.onnx")


@pytest.mark.usefixtures("little_room")
def test_it_is_taken_again(tmp_path: Path) -> None:
    network = small_network()
    network.export(tmp_path / "model.onnx", None)
    read = open_onnx(tmp_path / "model.onnx", "read", None)
    assert read.structure.macs == network.structure.macs
    images = images_for(network, 2)
    assert torch.allclose(read.outputs(images), network.outputs(images), atol=1e-4)


@pytest.mark.usefixtures("little_room")
def test_eight_bit_files_too(tmp_path: Path) -> None:
    network = small_network()
    small = network.pruned(in_int8(random_plan(network.structure, 0, tokens=False)), None)
    small.export(tmp_path / "model.onnx", 1)
    images = images_for(network, 4)
    difference = (run_onnx(tmp_path / "model.onnx", images, 1) - small.outputs(images)).abs().max()
    assert difference < 0.1 * small.outputs(images).abs().max()


@pytest.mark.slow
def test_weights_that_are_really_so_many(tmp_path: Path) -> None:
    """Check what the exporter, protobuf and the runtime do with one layer of 2.2 GB."""
    image, outputs = (1, 128, 128), 33_000
    layer = torch.nn.Linear(128 * 128, outputs, bias=False, device="meta").to_empty(device="cpu")
    torch.nn.init.constant_(layer.weight, 0.5)
    export_onnx(
        torch.nn.Sequential(torch.nn.Flatten(), layer),
        image,
        Preprocessing(image, (0.5,), (0.5,)),
        tmp_path / "source.onnx",
        batch=1,
    )
    copy_onnx(tmp_path / "source.onnx", tmp_path / "model.onnx")
    data_of(tmp_path / "source.onnx").unlink()
    assert bytes_of(tmp_path / "model.onnx") > 2**31 > LARGEST
    found = run_onnx(tmp_path / "model.onnx", torch.ones(1, *image), 1)
    assert found.shape == (1, outputs) and torch.allclose(found, torch.full_like(found, 0.5 * 128 * 128))
