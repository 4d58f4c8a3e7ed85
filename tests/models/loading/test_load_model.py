"""Tests of loading: which models vitfit takes, and which ones it refuses, with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from models.errors import (
    CheckpointMismatch,
    DamagedFile,
    InvalidRequest,
    TooLarge,
    UnknownName,
    UnsafeFile,
    UnsupportedModel,
)
from models.families import family_of
from models.loading.load_model import open_model

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


def model_folder(folder: Path, name: str = "vit_tiny_patch16_224", **more: Any) -> Path:
    document = {"name": name, "options": TINY, "pretrained": False, "preprocessing": None, "classes": None} | more
    (folder / "model.json").write_text(json.dumps(document))
    return folder


def tiny_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return timm.create_model("vit_tiny_patch16_224", **TINY).state_dict()


def test_checkpoints_of_both_kinds_load_the_same_weights(tmp_path: Path) -> None:
    weights = tiny_weights()
    for kind in ("safetensors", "pth", "wrapped.pth", "half.safetensors"):
        folder = model_folder(_fresh(tmp_path, kind))
        if kind.endswith("safetensors"):
            half = {k: v.half() for k, v in weights.items()} if kind.startswith("half") else weights
            save_file(half, folder / "weights.safetensors")
        else:
            torch.save(
                {"model": weights, "epoch": 3} if kind.startswith("wrapped") else weights, folder / "weights.pth"
            )
        loaded = open_model(folder).module.state_dict()
        assert all(torch.allclose(loaded[k], v, atol=1e-3) for k, v in weights.items())
        assert loaded["head.weight"].dtype == torch.float32


def _fresh(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def test_random_weights_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = (open_model(model_folder(tmp_path)).module.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_unknown_model_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="deit_small_patch16_224"):
        open_model(model_folder(tmp_path, "deit_smal_patch16_224", options={}))


def test_an_option_that_is_not_a_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="'norm_layer' is not allowed"):
        open_model(model_folder(tmp_path, options={"norm_layer": "os.system"}))


def test_a_shape_that_timm_cannot_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="could not build"):
        open_model(model_folder(tmp_path, options=TINY | {"num_heads": 5}))


def test_a_checkpoint_that_does_not_fit_names_its_keys(tmp_path: Path) -> None:
    weights = tiny_weights()
    weights["head.weight"] = torch.zeros(9, 24)
    weights["extra.weight"] = weights.pop("norm.weight")
    save_file(weights, model_folder(tmp_path) / "weights.safetensors")
    with pytest.raises(CheckpointMismatch) as refused:
        open_model(tmp_path)
    for words in ("1 missing (norm.weight)", "1 unexpected (extra.weight)", "head.weight: (9, 24) instead of (5, 24)"):
        assert words in refused.value.detail


class Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_a_pickle_with_code_never_runs(tmp_path: Path) -> None:
    torch.save({"model": Malicious()}, model_folder(tmp_path) / "weights.pth")
    with pytest.raises(UnsafeFile, match="tries to run code"):
        open_model(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path)
    (save_file if name.endswith("safetensors") else torch.save)(tiny_weights(), folder / name)
    (folder / name).write_bytes((folder / name).read_bytes()[:5000])
    with pytest.raises(DamagedFile):
        open_model(folder)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = tiny_weights()
    weights["norm.weight"][3] = float("nan")
    save_file(weights, model_folder(tmp_path) / "weights.safetensors")
    with pytest.raises(DamagedFile, match=r"norm\.weight"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swinv2_tiny_window8_256", "SwinTransformerV2 is not a family"),
        ("vit_small_patch16_224", "pooling 'map'"),
        ("vit_small_r26_s32_224", "patch embedding HybridEmbed"),
        ("vit_giant_patch14_dinov2", "GluMlp"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(name: str, reason: str) -> None:
    options: dict[str, Any] = {"depth": 1} if name.startswith("vit") else {}
    if name == "vit_giant_patch14_dinov2":
        options |= {"embed_dim": 64, "num_heads": 2, "num_classes": 3, "mlp_ratio": 4.0}
    if "map" in reason:
        options |= {"global_pool": "map"}
    with pytest.raises(UnsupportedModel) as refused:
        family_of(timm.create_model(name, **options))
    assert reason in refused.value.detail


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_plain_vision_transformers_are_taken(name: str) -> None:
    assert family_of(timm.create_model(name, depth=1)).name == "vision_transformer"


@pytest.mark.parametrize(
    "options", [{"num_heads": 0}, {"patch_size": 0}, {"embed_dim": -3}, {"depth": 0}, {"img_size": 4}]
)
def test_impossible_shapes_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises((InvalidRequest, UnsupportedModel)):
        open_model(model_folder(tmp_path, options=TINY | options))


@pytest.mark.parametrize("options", [{"depth": 2**31}, {"num_classes": 10**30}, {"img_size": float("inf")}])
def test_numbers_that_no_network_has_are_refused_before_anything_is_built(
    tmp_path: Path, options: dict[str, float]
) -> None:
    with pytest.raises(InvalidRequest, match=f"{next(iter(options))!r} is .* finite number"):
        open_model(model_folder(tmp_path, options=TINY | options))


def test_a_model_beyond_the_machines_memory_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="GiB of memory"):
        open_model(model_folder(tmp_path, options=TINY | {"embed_dim": 2**15, "depth": 400}))


@pytest.mark.parametrize("kind", ["sparse", "complex", "whole", "quantised", "numbered", "8-bit"])
def test_weights_that_are_no_plain_tensors_are_refused(tmp_path: Path, kind: str) -> None:
    weights: dict[Any, Any] = tiny_weights()
    value = weights["norm.weight"]
    if kind == "numbered":
        weights = {7: value, **weights}
    else:
        ways = {
            "sparse": value.to_sparse,
            "complex": lambda: value.to(torch.complex64),
            "whole": lambda: value.to(torch.int32),
            "quantised": lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
            "8-bit": lambda: value.to(torch.float8_e4m3fn),
        }
        weights["norm.weight"] = ways[kind]()
    torch.save(weights, model_folder(tmp_path) / "weights.pth")
    with pytest.raises(CheckpointMismatch, match=r"'7'|norm\.weight"):
        open_model(tmp_path)


def test_an_image_that_is_no_multiple_of_the_patch_keeps_its_size(tmp_path: Path) -> None:
    assert open_model(model_folder(tmp_path, options=TINY | {"img_size": 33})).structure.image == (3, 33, 33)


def test_class_names_reach_the_data(tmp_path: Path) -> None:
    assert open_model(model_folder(tmp_path, classes=list("abcde"))).class_names == tuple("abcde")


def test_a_quantised_checkpoint_is_refused_and_not_read_as_weights_of_another_scale(tmp_path: Path) -> None:
    folder, weights = model_folder(tmp_path), tiny_weights()
    weights["blocks.0.mlp.fc1.weight"] = (weights["blocks.0.mlp.fc1.weight"] * 127).to(torch.int8)
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"already quantised \(tensor blocks.0.mlp.fc1.weight\).*precisions"):
        open_model(folder)
