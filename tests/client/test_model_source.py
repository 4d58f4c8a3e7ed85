"""Tests of model sources: what a name, a file or a folder stands for, and what is packed of a folder."""

import json
import zipfile
from pathlib import Path

import pytest
from vitfit.client import Client
from vitfit.errors import VitfitError
from vitfit.model_source import model_source, packed

from tests.support.fake_server import FakeServer


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def contents(model: Path, scratch: Path) -> set[str]:
    with zipfile.ZipFile(packed(model, scratch)) as archive:
        return set(archive.namelist())


def test_a_choice_of_weights_is_part_of_the_source(tmp_path: Path) -> None:
    made(tmp_path, "weights.pth")
    chosen = model_source("vit_tiny", None, tmp_path / "weights.pth", weights="ema")
    assert chosen.to_json()["weights"] == "ema"
    assert "weights" not in model_source("vit_tiny").to_json()  # earlier servers refuse a field that they do not know
    (tmp_path / "model.json").write_text(json.dumps({"name": "vit_tiny", "weights": "student"}))
    assert model_source(str(tmp_path)).weights == "student"


def test_the_folder_of_a_trainer_is_packed_with_its_checkpoints_and_without_optimizers(tmp_path: Path) -> None:
    kept = ("checkpoint-500/config.json", "checkpoint-500/model.safetensors", "checkpoint-500/trainer_state.json")
    others = ("checkpoint-500/optimizer.pt", "checkpoint-500/rng_state.pth", "training_args.bin", ".git/config")
    folder = made(tmp_path / "out", *kept, *others)
    assert model_source(str(folder)).checkpoint == folder
    assert contents(folder, tmp_path) == set(kept)


def test_of_a_folder_with_weights_the_weights_of_checkpoints_stay_behind(tmp_path: Path) -> None:
    below = ("checkpoint-500/model.safetensors", "checkpoint-500/config.json")
    folder = made(tmp_path / "out", "config.json", "model.safetensors", *below)
    assert contents(folder, tmp_path) == {"config.json", "model.safetensors", "checkpoint-500/config.json"}


def test_the_index_of_shards_brings_its_shards(tmp_path: Path) -> None:
    folder = made(tmp_path / "out", "model-1.safetensors", "model-2.safetensors", "other.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert contents(index, tmp_path) == {index.name, "model-1.safetensors", "model-2.safetensors"}
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(VitfitError, match=r"shard 'model-2\.safetensors'"):
        packed(index, tmp_path)


def test_a_folder_with_weights_alone_says_how_to_give_it(tmp_path: Path) -> None:
    folder = made(tmp_path / "out", "model.safetensors")
    with pytest.raises(VitfitError, match="name of their timm model, and the folder as --checkpoint"):
        model_source(str(folder))


def test_a_choice_of_weights_is_uploaded(server: FakeServer, tmp_path: Path) -> None:
    made(tmp_path, "weights.pth")
    with Client(server.url) as client:
        client.upload_source(model_source("vit_tiny", None, tmp_path / "weights.pth", weights="ema"))
    parts = server.requests("POST", "/v1/models")[0].parts
    assert json.loads(parts["config"])["weights"] == "ema"
