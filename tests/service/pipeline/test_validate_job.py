"""Tests of `python -m service.pipeline.validate_job`: which jobs it refuses before any work, and how."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latency.devices.devices import describe_device
from models.errors import InvalidRequest
from models.graph.onnx.operators import OPERATORS
from models.loading.load_model import open_model
from service.core.processes import ROOT
from service.pipeline import validate_job as validate
from service.pipeline.check_job import check_calibration
from tests.models.graph.test_onnx_forms import Wrapped, exported
from tests.support.networks import small_network
from tests.support.small_jobs import OPTIONS, budget, data_folder, model_folder, random_images, store_npz


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def dataset(model: Path) -> Path:
    return data_folder(model.with_name("data"), model)


def as_process(document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "service.pipeline.validate_job"]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(document), capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command in this process and returns the answer to a document."""

    def answer(document: dict[str, Any]) -> dict[str, Any]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(document)))
        validate.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return answer


def refusal(answer: dict[str, Any]) -> tuple[str, str]:
    assert answer["ok"] is False and set(answer["error"]) == {"code", "detail", "facts"}
    return answer["error"]["code"], answer["error"]["detail"]


def job(*budgets: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"model": "m", "budgets": list(budgets) or [budget("macs_keep", 0.6)], **options}


def test_a_good_model_is_described_by_a_process(model: Path) -> None:
    status, answer = as_process({"model": str(model)})
    structure = open_model(model).structure
    assert status == 0
    assert answer == {
        "ok": True,
        "description": {
            "name": "vit_tiny_patch16_224",
            "params": structure.params,
            "macs": structure.macs,
            "image": [3, 32, 32],
            "classes": 5,
            "blocks": 4,
            "heads": 3,
            "width": 48,
            "tokens": 17,
            "key": structure.key,
            "preprocessing": open_model(model).preprocessing.to_json(),
            "assumptions": [],
        },
    }


def test_a_refusal_is_an_answer_and_exit_status_0(tmp_path: Path) -> None:
    write_model(tmp_path, "vit_tinny_patch16_224")
    status, answer = as_process({"model": str(tmp_path)})
    assert status == 0
    code, detail = refusal(answer)
    assert code == "unknown-name" and "vit_tiny_patch16_224" in detail


def write_model(folder: Path, name: str = "vit_tiny_patch16_224", **content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    document = {"name": name, "options": OPTIONS, "pretrained": False, **content}
    (folder / "model.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("name", "options", "code", "words"),
    [
        ("resnet18", {}, "unsupported-model", "ResNet"),
        ("mixer_s32_224", {}, "unsupported-model", "has no attention and MLP"),
        ("vit_tiny_patch16_224", {"drop_rate": 0.1}, "invalid-request", "'drop_rate' is not allowed"),
        ("vit_tiny_patch16_224", {"embed_dim": 50, "num_heads": 3}, "invalid-request", "embed_dim"),
    ],
)
def test_models_that_are_refused(ask: Any, tmp_path: Path, name: str, options: Any, code: str, words: str) -> None:
    found = refusal(ask({"model": str(write_model(tmp_path, name, options=options))}))
    assert found[0] == code and words in found[1]


class RunsCode:
    """An object whose pickle would run a command."""

    def __reduce__(self) -> Any:
        return print, ("code ran",)


def test_checkpoints_that_are_refused(ask: Any, model: Path, tmp_path: Path) -> None:
    weights = load_file(model / "weights.safetensors")
    head = weights.pop("head.weight")
    folder = write_model(tmp_path / "mismatch")
    save_file({**weights, "extra": head}, folder / "weights.safetensors")
    answer = ask({"model": str(folder)})
    assert refusal(answer)[0] == "checkpoint-mismatch"
    assert answer["error"]["facts"]["missing"] == ["head.weight"]
    assert answer["error"]["facts"]["unexpected"] == ["extra"]

    folder = write_model(tmp_path / "pickle")
    torch.save({"weights": RunsCode()}, folder / "weights.pth")
    assert refusal(ask({"model": str(folder)}))[0] == "unsafe-file"

    folder = write_model(tmp_path / "truncated")
    (folder / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes()[:5000])
    assert refusal(ask({"model": str(folder)}))[0] == "damaged-file"


def test_class_names_of_another_number_are_refused(ask: Any, tmp_path: Path) -> None:
    assert "2 class names" in refusal(ask({"model": str(write_model(tmp_path, classes=["a", "b"]))}))[1]


def test_data_are_described_and_refused(ask: Any, dataset: Path, tmp_path: Path) -> None:
    described = ask({"dataset": str(dataset), "allowed": []})
    assert described["ok"] and described["description"]["images"] == 120
    assert described["description"]["splits"]["test"] == 40
    few = store_npz(tmp_path / "few", images=random_images(6).numpy())
    assert refusal(ask({"dataset": str(few)}))[0] == "bad-data"
    nan = store_npz(tmp_path / "nan", images=np.full((64, 3, 32, 32), np.nan, dtype=np.float32))
    assert refusal(ask({"dataset": str(nan)}))[0] == "bad-data"


def test_a_path_outside_of_the_allowed_folders_is_refused(ask: Any, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"source": "path", "path": "/etc", "filename": "etc"}))
    answer = ask({"dataset": str(tmp_path), "allowed": [str(tmp_path)]})
    assert refusal(answer)[0] == "unsafe-file" and str(tmp_path) in refusal(answer)[1]


def test_a_good_job_is_described(ask: Any, model: Path, dataset: Path) -> None:
    answer = ask({"job": job(dataset="d"), "model": str(model), "dataset": str(dataset), "allowed": []})
    assert answer["ok"]
    description = answer["description"]
    assert description["criterion"] == "reconstruction" and description["dataset"]["labelled"]
    assert description["model"]["macs"] > 0


def test_a_job_without_data_is_warned(ask: Any, model: Path) -> None:
    answer = ask({"job": job(), "model": str(model), "dataset": None})
    assert answer["ok"] and answer["description"]["warnings"][0].startswith("The job has no data")


CORES = int(describe_device("cpu")["threads"])


@pytest.mark.parametrize(
    ("document", "code", "words"),
    [
        (job(finetune={"epochs": 1}), "invalid-request", "Fine-tuning needs a data set"),
        (job(budget("latency_keep", 0.5, threads=CORES + 1)), "device-unavailable", f"{CORES + 1} threads"),
        (job(budget("latency_keep", 0.5, "my-phone")), "unknown-name", "my-phone"),
        (job(criterion="luck"), "unknown-name", "luck"),
        (job(method="mdc", criterion="magnitude"), "invalid-request", "hsic"),
        (job(space="moon"), "unknown-name", "moon"),
        (job(method="cp-vit", keep_spatial=True), "invalid-request", "keep_spatial"),
        (job(method="mdc", space="paper", keep_spatial=True), "invalid-request", "paper"),
        (job(space="paper"), "invalid-request", "compact"),
        (job(method="cp-vit", space="compact"), "invalid-request", "cascade"),
        (job(method="prune-it"), "unknown-name", "joint"),
        (job(budget("macs_keep", 0.5), budget("macs_keep", 0.6)), "invalid-request", "macs_keep"),
    ],
)
def test_jobs_that_are_refused(ask: Any, model: Path, document: dict[str, Any], code: str, words: str) -> None:
    found = refusal(ask({"job": document, "model": str(model), "dataset": None}))
    assert found[0] == code and words in found[1]


def test_a_method_that_does_not_suit_the_model_is_refused(ask: Any, tmp_path: Path) -> None:
    flat = model_folder(tmp_path / "flat", depth=1)
    found = refusal(ask({"job": job(method="cp-vit"), "model": str(flat), "dataset": None}))
    assert found[0] == "invalid-request" and "second block" in found[1]


@pytest.mark.parametrize("setting", [{"threads": 2}, {"threads": 200}])
def test_a_profile_of_one_core_does_not_pretend_to_have_more(ask: Any, model: Path, setting: dict[str, int]) -> None:
    phone = job(budget("latency_keep", 0.5, "generic-mobile", **setting))
    assert refusal(ask({"job": phone, "model": str(model), "dataset": None}))[0] == "invalid-request"


def test_a_job_whose_labels_the_model_cannot_give_is_refused(ask: Any, model: Path, tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data", None, labels=np.full(120, 5))
    found = refusal(ask({"job": job(dataset="d"), "model": str(model), "dataset": str(data)}))
    assert found[0] == "bad-data" and "label 5" in found[1]


def test_a_job_whose_images_have_another_size_is_refused(ask: Any, model: Path, tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data", None, images=random_images(120, (3, 48, 48)).numpy())
    assert refusal(ask({"job": job(dataset="d"), "model": str(model), "dataset": str(data)}))[0] == "bad-data"


def test_a_precision_that_the_device_does_not_know_is_refused(ask: Any, model: Path) -> None:
    limit = budget("latency_keep", 0.6, "generic-mobile")
    document = {"job": job(limit, precisions=["int8"]), "model": str(model), "dataset": None}
    code, detail = refusal(ask(document))
    assert code == "invalid-request" and "generic-mobile" in detail and "fp32 only" in detail
    assert ask({**document, "job": job(precisions=["fp32", "int8"])})["ok"]


def test_the_images_of_the_job_show_a_wrong_reading_of_an_onnx_file(
    tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The translation of Clip is wrong only for values above those of noise. The user's images have such values."""
    monkeypatch.setitem(OPERATORS, "Clip", lambda build, names, attributes: build.value(names[0]))
    folder = tmp_path / "model"
    folder.mkdir()
    exported(folder / "model.onnx", Wrapped(nn.Hardtanh(-50.0, 50.0)))
    (folder / "model.json").write_text(json.dumps({"name": "clipped", "options": {}, "pretrained": False}))
    images = torch.randn(120, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def answer(factor: float) -> dict[str, Any]:
        data = store_npz(tmp_path / f"data-{factor}", images=(factor * images).numpy())
        document = {"job": job(), "model": str(folder), "dataset": str(data), "allowed": []}
        found: dict[str, Any] = ask(document)
        return found

    assert answer(1.0)["ok"]
    code, detail = refusal(answer(100.0))
    assert code == "unsupported-model" and "other outputs than the file itself" in detail


def test_rotated_bases_need_enough_images() -> None:
    """48 embedding dims and 37 tokens: two images have a token for each dim."""
    check_calibration(small_network(), 2)
    with pytest.raises(InvalidRequest, match="at least 2 calibration images, but the data set has 1"):
        check_calibration(small_network(), 1)
