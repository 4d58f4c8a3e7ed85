"""Tests of folders as trainers leave them: checkpoints below, shards, pickled weights, adapters."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vitfit.model_source import model_source

from models.errors import CheckpointMismatch, DamagedFile, InvalidRequest, UnsafeFile
from models.loading.load_model import open_model
from models.networks.network import Network
from service.pipeline.compress import model_folder
from tests.support.checkpoints import NAME, OPTIONS, agrees, vit

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
SIZES: dict[str, Any] = {
    **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96},
    **{"image_size": 32, "patch_size": 8, "num_labels": 5},
}


def hf(seed: int) -> Any:
    torch.manual_seed(seed)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).eval()


def loaded(scratch: Path, name: str | Path, checkpoint: Path | None = None, **more: Any) -> Network:
    """Open a model as `vitfit compress` does."""
    options = json.dumps(OPTIONS) if name == NAME else None
    source = model_source(str(name), options, checkpoint, **more)
    return open_model(
        model_folder(scratch / f"stored-{len(list(scratch.iterdir()))}", source.to_json(), source.checkpoint)
    )


def gives(network: Network, model: Any) -> bool:
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        return torch.allclose(network.outputs(images), model(images).logits, atol=1e-5)


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    """Make the folder of a trainer with two checkpoints, each with the state of an optimizer."""
    folder = tmp_path / "trainer"
    for number in (500, 1000):
        hf(number).save_pretrained(folder / f"checkpoint-{number}")
        torch.save({"state": {}}, folder / f"checkpoint-{number}" / "optimizer.pt")
        (folder / f"checkpoint-{number}" / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
    return folder


def best_is(folder: Path, name: str) -> None:
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": f"./out/{name}"}))


def said(network: Network) -> str:
    return network.assumptions[-1]


def test_the_last_checkpoint_of_a_trainer_is_taken_and_said(tmp_path: Path, trainer: Path) -> None:
    network = loaded(tmp_path, trainer)
    assert gives(network, hf(1000)) and "takes checkpoint-1000, the last one" in said(network)


@pytest.mark.parametrize("place", ["", "checkpoint-1000"])
def test_the_best_checkpoint_of_a_trainer_comes_first(tmp_path: Path, trainer: Path, place: str) -> None:
    best_is(trainer / place, "checkpoint-500")
    network = loaded(tmp_path, trainer)
    assert gives(network, hf(500)) and "takes checkpoint-500, the best one by trainer_state.json" in said(network)


def test_a_best_checkpoint_that_is_not_there_is_said(tmp_path: Path, trainer: Path) -> None:
    best_is(trainer, "checkpoint-250")
    network = loaded(tmp_path, trainer)
    assert gives(network, hf(1000)) and "checkpoint-250 the best one, but it is not there" in said(network)


def test_weights_of_the_folder_itself_come_first(tmp_path: Path, trainer: Path) -> None:
    hf(3).save_pretrained(trainer)
    network = loaded(tmp_path, trainer)
    assert gives(network, hf(3)) and "checkpoint-1000): vitfit takes the weights of the folder" in said(network)
    (trainer / "config.json").unlink()
    assert gives(loaded(tmp_path, trainer), hf(3))


def test_a_description_above_the_checkpoints_is_used(tmp_path: Path, trainer: Path) -> None:
    best_is(trainer, "checkpoint-500")
    (trainer / "checkpoint-500" / "config.json").rename(trainer / "config.json")
    processor = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": {"height": 32, "width": 32}}
    (trainer / "preprocessor_config.json").write_text(json.dumps(processor))
    network = loaded(tmp_path, trainer)
    assert gives(network, hf(500)) and network.preprocessing.mean == (0.1,) * 3


# Shards and pickles


def sharded(folder: Path, state: dict[str, Any], kind: str) -> list[Path]:
    """Save weights as two shards with an index. kind: "safetensors" or "bin"."""
    folder.mkdir(exist_ok=True)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names, files = list(state), [folder / f"{stem}-0000{number}-of-00002.{kind}" for number in (1, 2)]
    placed = {name: files[2 * index // len(names)] for index, name in enumerate(names)}
    for file in files:
        part = {name: state[name] for name in names if placed[name] == file}
        torch.save(part, file) if kind == "bin" else save_file(part, file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file.name for name, file in placed.items()}}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return files


def described(folder: Path) -> Path:
    """Make a Hugging Face folder without weights."""
    folder.mkdir()
    config = {**hf(1).config.to_dict(), "architectures": ["ViTForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_of_a_hugging_face_folder_are_joined_and_a_missing_one_is_named(tmp_path: Path, kind: str) -> None:
    files = sharded(described(tmp_path / "model"), hf(1).state_dict(), kind)
    assert gives(loaded(tmp_path, tmp_path / "model"), hf(1))
    files[1].unlink()
    with pytest.raises(CheckpointMismatch, match=f"shard '{files[1].name}'"):
        loaded(tmp_path, tmp_path / "model")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_of_a_timm_model_are_joined(tmp_path: Path, kind: str) -> None:
    model, folder = vit(1), tmp_path / "model"
    sharded(folder, model.state_dict(), kind)
    assert agrees(loaded(tmp_path, NAME, folder), model)
    assert agrees(loaded(tmp_path, NAME, next(folder.glob("*.index.json"))), model)
    arguments = {name: value for name, value in OPTIONS.items() if name != "num_classes"}
    config = {"architecture": NAME, "num_classes": 4, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    assert agrees(loaded(tmp_path, folder), model)


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path / "model", vit(1).state_dict(), "safetensors")
    next((tmp_path / "model").glob("*.index.json")).unlink()
    with pytest.raises(CheckpointMismatch, match="no index"):
        loaded(tmp_path, NAME, tmp_path / "model")


class Malicious:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


def test_pickled_weights_of_a_folder_are_read_and_code_in_them_is_refused(tmp_path: Path) -> None:
    folder = described(tmp_path / "model")
    torch.save(hf(1).state_dict(), folder / "pytorch_model.bin")
    assert gives(loaded(tmp_path, folder), hf(1))
    torch.save({**hf(1).state_dict(), "x": Malicious(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFile, match="tries to run code"):
        loaded(tmp_path, folder)
    assert not (tmp_path / "ran").exists()


def test_a_folder_in_16_bits_is_taken_as_float32_and_it_is_said(tmp_path: Path) -> None:
    model = hf(1).bfloat16()
    model.save_pretrained(tmp_path / "model")
    network = loaded(tmp_path, tmp_path / "model")
    assert gives(network, model.float())
    assert "The weights are stored as bfloat16: vitfit takes them as float32." in network.assumptions


def test_a_pointer_of_git_lfs_in_a_folder_is_named(tmp_path: Path) -> None:
    folder = described(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DamagedFile, match=r"file model\.safetensors is a pointer of Git LFS"):
        loaded(tmp_path, folder)


def test_an_adapter_folder_is_refused_with_the_way_to_merge_it(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    for name, checkpoint in ((folder, None), (NAME, folder / "adapter_model.safetensors")):
        with pytest.raises(CheckpointMismatch, match=r"(?s)adapter.*merge_and_unload\(\).*save_pretrained"):
            loaded(tmp_path, name, checkpoint)


def test_a_choice_of_weights_is_refused_where_there_is_none(tmp_path: Path) -> None:
    hf(1).save_pretrained(tmp_path / "model")
    with pytest.raises(InvalidRequest, match="chooses the weights 'ema'"):
        loaded(tmp_path, tmp_path / "model", weights="ema")
