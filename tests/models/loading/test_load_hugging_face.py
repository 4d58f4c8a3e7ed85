"""Tests of Hugging Face folders, made with the configuration classes of the library."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import CheckpointMismatch, UnsafeFile, UnsupportedModel
from models.loading.load_hugging_face import open_hugging_face
from tests.support.counted import differs
from tests.support.plans import plan_of, with_tokens

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
PLAIN: dict[str, Any] = {**SIZES, "image_size": 32, "patch_size": 8}
SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 24,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
}
PVT: dict[str, Any] = {"image_size": 64, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}
BEIT: dict[str, Any] = {**PLAIN, "use_relative_position_bias": True, "use_absolute_position_embeddings": False}
DINO: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


def model_of(name: str) -> Any:
    t = transformers
    torch.manual_seed(0)
    if name == "CLIPVisionModel":
        return t.CLIPVisionModel(t.CLIPVisionConfig(**PLAIN))
    if name == "clip":
        return t.CLIPModel(t.CLIPConfig(vision_config=PLAIN, text_config={**SIZES, "vocab_size": 100}))
    config, sizes = {
        "ViTForImageClassification": (t.ViTConfig, PLAIN),
        "DeiTForImageClassification": (t.DeiTConfig, PLAIN),
        "SwinForImageClassification": (t.SwinConfig, SWIN),
        "PvtForImageClassification": (t.PvtConfig, PVT),
        "Dinov2Model": (t.Dinov2Config, DINO),
        "SiglipVisionModel": (t.SiglipVisionConfig, PLAIN),
        "BeitForImageClassification": (t.BeitConfig, BEIT),
        "Data2VecVisionForImageClassification": (t.Data2VecVisionConfig, BEIT),
        "DINOv3ViTModel": (t.DINOv3ViTConfig, {**PLAIN, "num_register_tokens": 4}),
    }[name]
    more = {"num_labels": 5} if "Classification" in name else {}
    return getattr(t, name)(config(**sizes, **more))


def folder_of(name: str, folder: Path) -> tuple[Path, Any]:
    model = model_of(name).eval()
    model.save_pretrained(folder)
    return folder, model


NAMES = (
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "SwinForImageClassification",
    "PvtForImageClassification",
    "Dinov2Model",
    "SiglipVisionModel",
    "clip",
    "CLIPVisionModel",
    "BeitForImageClassification",
    "Data2VecVisionForImageClassification",
    "DINOv3ViTModel",
)


def outputs_of_library(name: str, model: Any, x: torch.Tensor) -> torch.Tensor:
    if name == "clip":
        wanted: torch.Tensor = model.visual_projection(model.vision_model(x).pooler_output)
        return wanted
    found = model(pixel_values=x)
    wanted = found.logits if "Classification" in name else found.pooler_output
    return wanted


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_library_s_and_heads_and_neurons_go(tmp_path: Path, name: str) -> None:
    folder, model = folder_of(name, tmp_path)
    network = open_hugging_face(folder, name, None)
    x = torch.randn(3, *network.structure.image)
    with torch.inference_mode():
        wanted = outputs_of_library(name, model, x)
    assert torch.allclose(network.outputs(x), wanted, atol=1e-5)
    small = network.pruned(plan_of(network.structure, 0.6), network.statistics(x))
    assert small.outputs(x).shape == wanted.shape
    assert differs(network, network.module) == differs(small, small.module) == []
    if "Swin" not in name and "Pvt" not in name:
        fewer = network.pruned(with_tokens(plan_of(network.structure, 0.6), network.structure, 0.5), None)
        assert len(fewer.reductions()) == 1 and fewer.outputs(x).isfinite().all()
        assert differs(fewer, fewer.module) == []
    assert small.structure.macs < 0.95 * network.structure.macs
    assert network.structure.classes == (5 if "Classification" in name else 0)


def test_the_image_processor_is_honoured(tmp_path: Path) -> None:
    folder, _ = folder_of("ViTForImageClassification", tmp_path)
    processor = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 2,
        "do_center_crop": True,
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    found = open_hugging_face(folder, "vit", None).preprocessing
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.size, found.crop, found.interpolation, found.crop_mode) == ((3, 32, 32), 0.8, "bilinear", "center")


def test_remote_code_and_folders_without_safetensors_are_refused(tmp_path: Path) -> None:
    folder, _ = folder_of("ViTForImageClassification", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "mine.Model"}}))
    with pytest.raises(UnsafeFile, match="auto_map"):
        open_hugging_face(folder, "vit", None)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match=r"no weights.*model\.safetensors"):
        open_hugging_face(folder, "vit", None)  # `open_model` makes safetensors of the pickle first


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder, _ = folder_of("ViTForImageClassification", tmp_path)
    weights = load_file(folder / "model.safetensors")
    last = next(name for name in weights if name.endswith("classifier.weight"))
    save_file(
        {name: value for name, value in weights.items() if name != last}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointMismatch, match=r"classifier\.weight"):
        open_hugging_face(folder, "vit", None)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    folder, _ = folder_of("ViTForImageClassification", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nonsense"}))
    with pytest.raises(UnsupportedModel, match="nonsense"):
        open_hugging_face(folder, "vit", None)
