"""Tests of jobs and checks that meet damaged files: the reason is told, whatever the reader of the file raises."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.errors import DamagedFile
from service.pipeline import validate_job
from tests.support.small_jobs import Workshop, budget

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_job_whose_weights_are_not_finite_fails_with_the_tensor(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "weights.safetensors")
    weights["norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "model" / "weights.safetensors")
    job = Workshop(tmp_path, tmp_path / "model", workshop.dataset)
    with pytest.raises(DamagedFile, match=r"NaN or infinite weights in the tensor norm\.weight"):
        job.run(budget("macs_keep", 0.6), trials=1)


def test_a_job_that_meets_damaged_pictures_while_it_runs_fails_with_the_picture(
    workshop: Workshop, tmp_path: Path
) -> None:
    """The headers of all pictures are sound, so the data set was accepted."""
    draw = np.random.default_rng(0)
    for number in range(120):
        image = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        (tmp_path / "pictures").mkdir(exist_ok=True)
        content = buffer.getvalue()
        (tmp_path / "pictures" / f"{number:03d}.png").write_bytes(content if number % 5 else content[:200])
    shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "pictures")
    shutil.rmtree(tmp_path / "pictures")
    (tmp_path / "dataset.json").write_text(json.dumps({"source": "archive", "path": None, "filename": "a.zip"}))
    job = Workshop(tmp_path / "job", workshop.model, tmp_path)
    with pytest.raises(DamagedFile, match=r"cannot decode the picture '\d+\.png'"):
        job.run(budget("macs_keep", 0.6), trials=1)


def answer(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(document)))
    validate_job.main()
    return json.loads(capsys.readouterr().out)


def test_a_reader_that_fails_in_an_unexpected_way_is_a_refusal_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.json").write_text("[1]")
    found = answer({"model": str(tmp_path)}, monkeypatch, capsys)
    assert found["ok"] is False and found["unexpected"] is True
    assert found["error"]["code"] == "damaged-file" and "vitfit cannot read the model" in found["error"]["detail"]


def test_a_defect_in_the_check_of_a_job_is_no_refusal(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {"job": None, "model": str(workshop.model), "dataset": None}
    monkeypatch.setattr(validate_job, "describe", lambda request: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(document, monkeypatch, capsys)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), DamagedFile("no")], ids=str)
def test_a_check_without_memory_says_so(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(_: dict[str, Any]) -> None:
        try:
            raise MemoryError
        except MemoryError as cause:
            raise error from cause

    monkeypatch.setattr(validate_job, "describe", fail)
    found = answer({"job": {}, "model": str(workshop.model)}, monkeypatch, capsys)
    assert (found["ok"], found["limit"]) == (False, "memory")


def test_torch_without_memory_is_recognised() -> None:
    from service.core.limits import limit_in

    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50, dtype=torch.uint8)
    assert limit_in(refused.value) == "memory"
