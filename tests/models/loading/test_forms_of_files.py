"""Tests of checkpoints and folders as training scripts, Hugging Face and timm leave them."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from vitfit.model_source import packed

from models.errors import InvalidRequest, UnsupportedModel
from models.loading.image_processor import preprocessing_of
from models.loading.load_hugging_face import open_hugging_face
from models.loading.load_model import open_model
from models.loading.load_timm_folder import open_timm_folder
from models.loading.model_files import stored_name
from tests.support.checkpoints import OPTIONS, load_checkpoint, vit

transformers = pytest.importorskip("transformers")
SIZES: dict[str, Any] = {
    **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96},
    **{"image_size": 32, "patch_size": 8},
}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "encoder.model."]
)
def test_a_prefix_of_training_scripts_is_left_out_and_said(tmp_path: Path, prefix: str) -> None:
    trained, mine = vit(1), vit(2)
    save_file({prefix + name: value for name, value in trained.state_dict().items()}, tmp_path / "w.safetensors")
    said = load_checkpoint(mine, tmp_path / "w.safetensors")
    assert all(torch.equal(value, mine.state_dict()[name]) for name, value in trained.state_dict().items())
    assert len(said) == 1 and repr(prefix) in said[0]


def test_a_checkpoint_of_timms_training_script_gives_its_averaged_weights(tmp_path: Path) -> None:
    plain, averaged, mine = vit(1), vit(2), vit(3)
    state = {
        "epoch": 3,
        "state_dict": plain.state_dict(),
        "state_dict_ema": averaged.state_dict(),
        "args": argparse.Namespace(lr=0.1, output=Path("out")),
        "metric": np.float64(0.9),
    }
    torch.save(state, tmp_path / "model_best.pth.tar")
    (tmp_path / "model_best.pth.tar").rename(tmp_path / stored_name("model_best.pth.tar"))
    said = load_checkpoint(mine, tmp_path / "weights.pth")
    assert torch.equal(mine.head.weight, averaged.head.weight) and not torch.equal(
        plain.head.weight, averaged.head.weight
    )
    assert any("state_dict_ema" in sentence and "several sets" in sentence for sentence in said)


def test_names_of_model_files_are_known_by_their_end() -> None:
    assert [stored_name(name) for name in ("a.ckpt", "B.PTH.TAR", "c.onnx")] == [
        "weights.pth",
        "weights.pth",
        "model.onnx",
    ]
    with pytest.raises(InvalidRequest, match="safetensors"):
        stored_name("weights.tar")


def test_a_timm_folder_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    model = vit(1)
    described = {"mean": [0.4] * 3, "std": [0.3] * 3, "crop_pct": 0.9, "interpolation": "bilinear"}
    arguments = {name: value for name, value in OPTIONS.items() if name != "num_classes"}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 4,
        "pretrained_cfg": described,
        "model_args": arguments,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    module: Any
    module, said = open_timm_folder(tmp_path, config)
    assert said == []
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(module.eval()(images), model.eval()(images))
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(theirs.state_dict()["head.weight"], module.state_dict()["head.weight"])
    assert {name: theirs.pretrained_cfg[name] for name in described} == {
        name: module.pretrained_cfg[name] for name in described
    }


# Hugging Face


def saved(model: Any, folder: Path, processor: dict[str, Any] | None = None) -> Path:
    model.eval().save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_clip_keeps_its_projection(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**SIZES, projection_dim=16)
    model = transformers.CLIPVisionModelWithProjection(config)
    network = open_hugging_face(saved(model, tmp_path), "clip", None)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(
            network.outputs(images), model(pixel_values=images).image_embeds, atol=1e-5, rtol=1e-4
        )
    assert any("preprocessor_config.json" in sentence for sentence in network.assumptions)


def test_models_without_one_row_for_each_image_are_refused_by_their_class(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4, "num_attention_heads": [1, 2, 3, 4]}
    config = transformers.SegformerConfig(image_size=64, num_labels=5, decoder_hidden_size=32, **shape)
    folder = saved(transformers.SegformerForSemanticSegmentation(config), tmp_path)
    with pytest.raises(UnsupportedModel, match=r"SegformerForSemanticSegmentation\. It gives logits \(2, 5, 16, 16\)"):
        open_hugging_face(folder, "segformer", None)


VIT: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
PROCESSORS: dict[str, dict[str, Any]] = {
    "plain": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.1] * 3,
    },
    "another factor": {
        **VIT,
        **{"do_rescale": True, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    },
    "not normalised": {
        **VIT,
        "do_normalize": False,
    },
    "blue first": {
        **{"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True, "do_center_crop": True},
        **{"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "resample": 2},
    },
    "centre crop": {
        **{"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "size": {"shortest_edge": 40}},
        **{"crop_size": {"height": 32, "width": 32}, "image_mean": [0.4] * 3, "image_std": [0.2] * 3},
    },
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_picture_is_prepared_as_the_image_processor_does(tmp_path: Path, name: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    ours = preprocessing_of(tmp_path, {"image_size": 32})
    down, right = np.mgrid[0:48, 0:64] / 64
    picture = Image.fromarray((255 * np.stack([down, right, down * right], -1)).astype(np.uint8))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="np")["pixel_values"][0]
    assert float(np.abs(np.asarray(theirs) - ours.apply_to_picture(picture).numpy()).mean()) < 0.05


def test_a_processor_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES))
    wrong = {
        "image_processor_type": "LevitImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
    }
    folder = saved(model, tmp_path, {**wrong, "do_center_crop": True, "do_pad": True, "size_divisor": 64})
    found = preprocessing_of(folder, {"image_size": 32})
    assert found.size == (3, 32, 32)  # Levit resizes to 256 / 224 of the size first
    with pytest.raises(InvalidRequest, match="another way"):
        open_hugging_face(folder, "vit", None)


def test_files_beside_an_onnx_file_say_how_pictures_are_prepared(tmp_path: Path) -> None:
    torch.onnx.export(vit(1).eval(), (torch.randn(2, 3, 32, 32),), str(tmp_path / "model.onnx"), dynamo=False)
    (tmp_path / "config.json").write_text(
        json.dumps({"image_size": 32, "id2label": {str(i): f"c{i}" for i in range(4)}})
    )
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.1] * 3, "image_std": [0.2] * 3, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    folder = tmp_path / "stored"
    folder.mkdir()
    archive = packed(tmp_path / "model.onnx", tmp_path)
    archive.rename(folder / "model.zip")
    (folder / "model.json").write_text(json.dumps({"name": "vit"}))
    network = open_model(folder)
    assert network.preprocessing.mean == (0.1,) * 3 and network.preprocessing.interpolation == "bilinear"
    assert network.class_names == ("c0", "c1", "c2", "c3") and network.assumptions == ()
