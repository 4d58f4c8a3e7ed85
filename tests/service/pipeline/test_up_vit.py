"""Tests of jobs of UP-ViTs' method.

The jobs prune every axis except tokens. Some of them prune to the exact shape of a smaller timm model.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from models.errors import ImpossibleBudget, InvalidRequest
from models.export.onnx_export import run_onnx
from models.structure import Plan
from service.pipeline.validate_job import describe
from tests.support.small_jobs import ARTIFACTS, Workshop, budget, data_folder, job_request, model_folder, random_images

TARGET = "deit_tiny_patch16_224"
WIDER: dict[str, Any] = {"patch_size": 16, "embed_dim": 256, "depth": 12, "num_heads": 4}
"""A network with a third more width and heads than DeiT-T, on images of four patches."""


pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    root = tmp_path_factory.mktemp("wider")
    return Workshop(root, model_folder(root / "model", **WIDER), None)


@pytest.mark.slow
def test_width_and_depth_are_pruned_and_delivered(workshop: Workshop) -> None:
    """Limit the MACs to a fifth. Without embedding width and sublayers, the job could only reach a half."""
    ran = workshop.run(budget("macs_keep", 0.2), method="up-vit", trials=4)
    assert {path.name for path in ran.files.artifacts.iterdir()} == ARTIFACTS
    assert ran.report["parity"]["passed"]
    plans = [row["policy"] for row in ran.journal.trials()]
    assert any(policy["embed"] < 1 for policy in plans) and any(policy["halves"] < 1 for policy in plans)
    plan = Plan.from_json(ran.json("plan.json"))
    assert all(block.tokens is None for block in plan.blocks)
    assert len(plan.embed) < 48
    assert ran.report["delivered"]["macs"] <= 0.2 * ran.report["original"]["macs"]


@pytest.mark.slow
def test_a_target_shape_is_delivered_with_timm_s_own_weights(wider: Workshop) -> None:
    ran = wider.run(budget("macs_keep", 0.8), method="up-vit", target=TARGET, trials=9)
    assert {path.name for path in ran.files.artifacts.iterdir()} == ARTIFACTS | {"timm.safetensors"}
    assert len(ran.journal.trials()) == 1
    loaded = timm.create_model(TARGET, img_size=32, num_classes=5).eval()
    loaded.load_state_dict(load_file(ran.path("timm.safetensors")))
    images = random_images(8)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), run_onnx(ran.path("model.onnx"), images, 1), rtol=1e-3, atol=1e-4)
    assert ran.report["delivered"]["params"] == sum(p.numel() for p in loaded.parameters())


def test_a_target_is_delivered_in_rotated_bases(wider: Workshop) -> None:
    ran = wider.run(budget("macs_keep", 0.8), target=TARGET)
    assert ran.json("plan.json")["rotated"] == ["qk", "v", "embed"]
    loaded = timm.create_model(TARGET, img_size=32, num_classes=5).eval()
    loaded.load_state_dict(load_file(ran.path("timm.safetensors")))
    images = random_images(8)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), run_onnx(ran.path("model.onnx"), images, 1), rtol=1e-3, atol=1e-4)


def test_a_target_above_its_budget_names_what_it_takes(wider: Workshop) -> None:
    with pytest.raises(ImpossibleBudget) as refused:
        wider.run(budget("macs_keep", 0.3), method="up-vit", target=TARGET, criterion="taylor")
    assert 0.5 < refused.value.facts["best_reachable"] < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": TARGET, "method": "mdc"}, "methods 'joint' and 'up-vit' only"),
        ({"target": TARGET, "method": "up-vit", "objective": "latency", "max_loss": 0.1}, "fixes the shape"),
    ],
)
def test_a_target_that_contradicts_the_request_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        job_request(budget("macs_keep", 0.5), **options)


def validated(model: Path, **options: Any) -> dict[str, Any]:
    job = job_request(budget("macs_keep", 0.5), dataset=False, method="up-vit", **options)
    return describe({"job": job.model_dump(mode="json"), "model": str(model), "dataset": None})


def test_cutmix_without_labels_is_refused_before_the_job(workshop: Workshop, tmp_path: Path) -> None:
    job = job_request(budget("macs_keep", 0.5), method="up-vit", finetune={"epochs": 1, "cutmix": 0.5})
    data = data_folder(tmp_path / "unlabelled", None)
    with pytest.raises(InvalidRequest, match="mixes labels"):
        describe({"job": job.model_dump(mode="json"), "model": str(workshop.model), "dataset": str(data)})


def test_what_cannot_be_done_is_refused_before_the_job(workshop: Workshop, wider: Workshop, tmp_path: Path) -> None:
    """Refuse a target that is larger, a model without classes, and leave-one-out scores that would take a day."""
    assert validated(workshop.model)["criterion"] == "kl"
    with pytest.raises(InvalidRequest, match="embedding dims, but the target has 192"):
        validated(workshop.model, target=TARGET)
    with pytest.raises(InvalidRequest, match="no classifier"):
        validated(model_folder(tmp_path / "features", num_classes=0))
    with pytest.raises(InvalidRequest, match="Choose criterion 'kl'"):
        validated(
            model_folder(tmp_path / "large", img_size=224, embed_dim=384, depth=12, num_heads=6), criterion="kl-exact"
        )
