"""Claim: vitfit takes the ONNX files that people make of common models as what they are, or refuses them with a reason.

    python -m benchmarks.accepted.exported_files                       all models, both exporters of torch
    python -m benchmarks.accepted.exported_files --optimum PYTHON      also by optimum, installed for this Python
    python -m benchmarks.accepted.exported_files --only vit swin       some models
    python -m benchmarks.accepted.exported_files --table               prints the rows that are stored already

The script builds 40 architectures of transformers (small configurations) and 40 names of timm, with random weights. It
exports each one, hands the file to vitfit, and lets vitfit write the original again. For every file that is taken, all
outputs of vitfit's file must equal those of the file handed in. No model is downloaded.
"""

import argparse
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

from benchmarks.accepted.rows import in_a_process, store_row, stored_rows
from benchmarks.machine import machine

SECONDS = 300
MEMORY = 10 << 30
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
IMAGE = {"image_size": 32, "patch_size": 8}
STAGES = {"depths": [2, 2, 2, 2], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4]}
SWIN = {"image_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
CLASSES = {"num_labels": 7}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": {**SMALL, **IMAGE, **CLASSES},
    "ViTModel": {**SMALL, **IMAGE},
    "DeiTForImageClassification": {**SMALL, **IMAGE, **CLASSES},
    "DeiTForImageClassificationWithTeacher": {**SMALL, **IMAGE, **CLASSES},
    "BeitForImageClassification": {**SMALL, **IMAGE, **CLASSES, "use_relative_position_bias": True},
    "Data2VecVisionForImageClassification": {**SMALL, **IMAGE, **CLASSES, "use_relative_position_bias": True},
    "ViTMSNForImageClassification": {**SMALL, **IMAGE, **CLASSES},
    "ViTMAEModel": {**SMALL, **IMAGE, "mask_ratio": 0.0},
    "Dinov2ForImageClassification": {**SMALL, **IMAGE, **CLASSES},
    "Dinov2Model": {**SMALL, **IMAGE},
    "Dinov2WithRegistersForImageClassification": {**SMALL, **IMAGE, **CLASSES},
    "DINOv3ViTModel": {**SMALL, **IMAGE, "num_attention_heads": 2},
    "IJepaForImageClassification": {**SMALL, **IMAGE, **CLASSES},
    "SwinForImageClassification": {**SWIN, **CLASSES},
    "Swinv2ForImageClassification": {**SWIN, **CLASSES},
    "DonutSwinModel": SWIN,
    "PvtForImageClassification": {**STAGES, **CLASSES, "image_size": 64},
    "PvtV2ForImageClassification": {**STAGES, **CLASSES, "image_size": 64},
    "SegformerForImageClassification": {**STAGES, **CLASSES},
    "GLPNForDepthEstimation": STAGES,
    "MobileViTForImageClassification": {**CLASSES, "image_size": 64, "hidden_sizes": [24, 36, 48]},
    "MobileViTV2ForImageClassification": {**CLASSES, "image_size": 64},
    "LevitForImageClassification": {**CLASSES, "image_size": 64},
    "CvtForImageClassification": {**CLASSES, "embed_dim": [16, 32, 48], "depth": [1, 1, 2], "num_heads": [1, 2, 3]},
    "PoolFormerForImageClassification": {**CLASSES, "hidden_sizes": [16, 32, 48, 64]},
    "FocalNetForImageClassification": {**CLASSES, "embed_dim": 24, "depths": [2, 2], "image_size": 64},
    "HieraForImageClassification": {**CLASSES, "embed_dim": 24, "depths": [1, 2], "num_heads": [1, 2]},
    "SwiftFormerForImageClassification": {**CLASSES, "image_size": 64},
    "CLIPVisionModel": {**SMALL, **IMAGE},
    "CLIPVisionModelWithProjection": {**SMALL, **IMAGE, "projection_dim": 20},
    "MetaClip2VisionModel": {**SMALL, **IMAGE},
    "SiglipVisionModel": {**SMALL, **IMAGE},
    "SiglipForImageClassification": {"vision_config": {**SMALL, **IMAGE}, **CLASSES},
    "BlipVisionModel": {**SMALL, **IMAGE},
    "Blip2VisionModel": {**SMALL, **IMAGE},
    "ChineseCLIPVisionModel": {**SMALL, **IMAGE},
    "AltCLIPVisionModel": {**SMALL, **IMAGE},
    "Aimv2VisionModel": {**SMALL, **IMAGE},
    "YolosForObjectDetection": {**SMALL, **CLASSES, "image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 5},
    "DPTForDepthEstimation": {**SMALL, **IMAGE, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
}
TINY: dict[str, Any] = {"img_size": 64, "num_classes": 7}
TIMM = [
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_siglip_224",
    "vit_relpos_small_patch16_224",
    "vit_srelpos_small_patch16_224",
    "vit_medium_patch16_gap_240",
    "vit_wee_patch16_reg1_gap_256",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "beitv2_base_patch16_224",
    "eva02_tiny_patch14_224",
    "cait_xxs24_224",
    "pit_ti_224",
    "pvt_v2_b0",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_ns_224",
    "twins_svt_small",
    "xcit_nano_12_p8_224",
    "convit_tiny",
    "crossvit_9_240",
    "tnt_s_legacy_patch16_224",
    "nest_tiny",
    "mvitv2_tiny",
    "hiera_tiny_224",
    "davit_tiny",
    "gcvit_xxtiny",
    "levit_128s",
    "volo_d1_224",
    "visformer_tiny",
    "tiny_vit_5m_224",
    "maxvit_rmlp_pico_rw_256",
]
MAKERS = ("torchscript", "dynamo", "optimum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimum", help="a Python that has optimum")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("build/exported_files.jsonl"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["model"], row["maker"]) for row in stored_rows(options.output)}
    names = [(name, maker) for name in TRANSFORMERS for maker in MAKERS if maker != "optimum" or options.optimum]
    names += [(name, maker) for name in TIMM for maker in ("torchscript", "dynamo")]
    for name, maker in [] if options.table else names:
        if (name, maker) in done or not (options.only is None or name in options.only):
            continue
        store_row(options.output, _one(name, maker, options.optimum))
    print(table(stored_rows(options.output)))


def _one(name: str, maker: str, optimum: str | None) -> dict[str, Any]:
    """Try one file in a process of its own. Return its row, or a row that says why the process failed."""
    preload = ["models.loading.load_onnx", "transformers", "timm"]
    found = in_a_process(_row_of, name, maker, optimum, preload=preload, seconds=SECONDS, memory=MEMORY)
    what_happened = {"said": "failed", "why": found} if isinstance(found, str) else found
    return {"model": name, "maker": maker, **what_happened}


def _row_of(name: str, maker: str, optimum: str | None) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        return row_of(name, maker, optimum, Path(folder))


def row_of(name: str, maker: str, optimum: str | None, folder: Path) -> dict[str, Any]:
    """Export one model and hand the file to vitfit. Return what happened: "said", and "why" unless it was taken."""
    from models.errors import VitfitError
    from models.loading.load_onnx import open_onnx

    try:
        file, size = exported(name, maker, optimum, folder)
    except Exception as error:  # exporters fail with errors of any kind
        return {"said": "not exported", "why": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"}
    wanted = {"size": list(size), "mean": [0.5] * 3, "std": [0.5] * 3}
    try:
        network = open_onnx(file, name, wanted)
    except VitfitError as error:
        return {"said": "refused", "why": error.facts.get("reasons", [error.detail])[0]}
    network.export(folder / "original.onnx", None)
    apart = largest_difference(file, folder / "original.onnx", size)
    kind = "plain" if type(network).__name__ == "TorchNetwork" else "graph"
    return {"said": "taken" if apart < 1e-3 else "another network", "kind": kind, "apart": apart, "why": ""}


def exported(name: str, maker: str, optimum: str | None, folder: Path) -> tuple[Path, tuple[int, int, int]]:
    """Return the file of a model, and the size of its images."""
    import timm
    import torch
    import transformers

    torch.manual_seed(0)
    model: Any
    if name in TRANSFORMERS:
        kind = getattr(transformers, name)
        config = kind.config_class(**TRANSFORMERS[name])
        model = kind(config).eval()
        vision = getattr(config, "vision_config", config)
        side = getattr(vision, "image_size", 64) or 64
        size = (3, side, side) if isinstance(side, int) else (3, *side)
        if maker == "optimum":
            return _by_optimum(model, str(optimum), folder), size
    else:
        try:
            model = timm.create_model(name, **TINY).eval()
            size = (3, 64, 64)
        except (TypeError, AssertionError, ValueError, RuntimeError):  # it has one size only
            model = timm.create_model(name, num_classes=7).eval()
            size = model.default_cfg["input_size"]
    return _by_torch(model, size, maker == "dynamo", folder / "model.onnx"), size


def _by_torch(model: Any, size: tuple[int, int, int], dynamo: bool, path: Path) -> Path:
    import torch

    more: dict[str, Any] = {"dynamic_axes": {"images": {0: "n"}}, "opset_version": 17}
    if dynamo:
        more = {"dynamic_shapes": ({0: torch.export.Dim("n", min=1, max=64)},), "opset_version": 18}
    torch.onnx.export(model, (torch.rand(2, *size),), str(path), input_names=["images"], dynamo=dynamo, **more)
    return path


def _by_optimum(model: Any, python: str, folder: Path) -> Path:
    model.save_pretrained(folder / "model")
    task = "image-classification" if "Classification" in type(model).__name__ else "feature-extraction"
    code = (
        "import sys; from optimum.exporters.onnx import main_export;"
        "main_export(sys.argv[1], sys.argv[2], task=sys.argv[3], do_validation=False)"
    )
    command = [python, "-c", code, str(folder / "model"), str(folder / "made"), task]
    made = subprocess.run(command, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"})
    if made.returncode:
        raise RuntimeError(made.stderr.strip().splitlines()[-1])
    return folder / "made" / "model.onnx"


def largest_difference(one: Path, other: Path, size: tuple[int, int, int]) -> float:
    """Return the largest difference of any output of two files, divided by the largest value of that output."""
    import numpy as np
    import onnxruntime

    images = np.random.default_rng(0).random((2, *size), dtype=np.float32)
    found = []
    for file in (one, other):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        batch = entry.shape[0] if isinstance(entry.shape[0], int) else len(images)
        runs = [session.run(None, {entry.name: images[i : i + batch]}) for i in range(0, len(images), batch)]
        found.append([np.concatenate(parts) for parts in zip(*runs, strict=True)])
    if [part.shape for part in found[0]] != [part.shape for part in found[1]]:
        return float("inf")
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)) for a, b in zip(*found, strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table: one line for each model, one column for each exporter."""
    said = {(row["model"], row["maker"]): row for row in rows}
    lines = ["| model | " + " | ".join(MAKERS) + " |", "|---|---|---|---|"]
    for name in dict.fromkeys(row["model"] for row in rows):
        cells = (said.get((name, maker)) for maker in MAKERS)
        lines.append(f"| {name} | " + " | ".join(_cell(row) for row in cells) + " |")
    counts = {kind: sum(row["said"] == kind for row in rows) for kind in dict.fromkeys(row["said"] for row in rows)}
    summary = f"{len(rows)} files: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()) + "."
    return "\n".join([*lines, "", summary, ", ".join(machine().values())])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"taken ({row['kind']})" if row["said"] == "taken" else f"{row['said']}: {row['why']}".replace("|", "/")


if __name__ == "__main__":
    main()
