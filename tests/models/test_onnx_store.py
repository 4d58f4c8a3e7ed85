"""ONNX files that are larger than protobuf allows, with a limit that small ones pass."""

from pathlib import Path

import onnx
import pytest
import torch

from models import onnx_store
from models.export import run_onnx
from models.onnx_store import bytes_of, copy_onnx, data_of, files_of
from tests.models.networks import images_for, in_int8, random_plan, small_network

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
def test_eight_bit_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.quantize.LARGEST", 100_000)
    network = small_network()
    small = network.pruned(in_int8(random_plan(network.structure, 0, tokens=False)), None)
    small.export(tmp_path / "model.onnx", 1)
    images = images_for(network, 4)
    difference = (run_onnx(tmp_path / "model.onnx", images, 1) - small.outputs(images)).abs().max()
    assert difference < 0.1 * small.outputs(images).abs().max()
