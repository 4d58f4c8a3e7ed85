"""Tests of `vitfit compress`: a job without a server, in the user's own folders."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vitfit.cli import app

from models.errors import CheckpointMismatch, InvalidRequest
from service.core.errors import StorageFull
from service.jobs.journal import MemoryJournal
from service.pipeline.compress import compress
from tests.support.small_jobs import ARTIFACTS, OPTIONS, budget, job_request, model_folder, random_images

MODEL = {"name": "vit_tiny_patch16_224", "options": OPTIONS, "pretrained": False}
SHARED_MEMORY = Path("/dev/shm")


pytestmark = pytest.mark.usefixtures("brief")


def run(output: Path, data: Path | None = None, checkpoint: Path | None = None, **extra: Any) -> dict[str, Any]:
    request = job_request(budget("macs_keep", 0.6), trials=1, dataset=data is not None)
    return compress(request, MODEL, checkpoint, data, output=output, **extra)


def test_the_files_lie_in_the_output_folder_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, heard = tmp_path / "scratch", []
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    result = run(tmp_path / "deep" / "out", on_progress=lambda journal: heard.append(journal.stages[-1]))
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == ARTIFACTS
    assert Path(result["report"]).is_file() and result["guarantee"] == "counted"
    assert heard[0] == "validating" and "searching" in heard and heard[-1] == "reporting"
    assert list(scratch.iterdir()) == []


def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    weights = model_folder(tmp_path / "model") / "weights.safetensors"
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageFull, match=r"temporary folder '.*' has .*Make room there.*TMPDIR"):
        run(tmp_path / "out", checkpoint=weights)


def test_without_any_temporary_folder_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    with pytest.raises(StorageFull, match=r"cannot write temporary files.*TMPDIR"):
        run(tmp_path / "out")


def test_checkpoint_and_npz_are_read(tmp_path: Path) -> None:
    weights = model_folder(tmp_path / "model") / "weights.safetensors"
    np.savez(tmp_path / "my images.npz", images=random_images(64).numpy(), labels=np.arange(64) % 5)
    output = tmp_path / "out"
    run(output, tmp_path / "my images.npz", weights)
    report = json.loads((output / "report.json").read_text())
    assert report["original"]["images"] == 16 and report["original"]["correct"] is not None
    wrong = model_folder(tmp_path / "other", num_classes=6) / "weights.safetensors"
    with pytest.raises(CheckpointMismatch):
        run(tmp_path / "out2", checkpoint=wrong)


def test_a_checkpoint_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(InvalidRequest, match=r"weights\.h5"):
        run(tmp_path / "out", checkpoint=tmp_path / "weights.h5")


def test_a_folder_of_pictures_is_read_where_it_is(tmp_path: Path) -> None:
    """The job runs on the user's own machine, so no operator has to allow the folder."""
    random = np.random.default_rng(0)
    for name in range(5):
        (tmp_path / "pictures" / str(name)).mkdir(parents=True)
        for number in range(13):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / str(name) / f"{number}.png")
    run(tmp_path / "out", tmp_path / "pictures")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["original"]["correct"] is not None


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="needs a second file system")
def test_the_output_may_lie_on_another_file_system(tmp_path: Path) -> None:
    if SHARED_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    output = SHARED_MEMORY / f"vitfit-test-{tmp_path.parent.name}"
    try:
        run(output)
        assert {path.name for path in output.iterdir()} == ARTIFACTS
    finally:
        shutil.rmtree(output, ignore_errors=True)


def test_the_command_prints_the_summary(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    options = ["--no-pretrained", "--options", json.dumps(OPTIONS), "--budget-macs-keep", "0.6", "--trials", "1"]
    arguments = ["compress", MODEL["name"], *options, "--output", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["guarantee"] == "counted" and summary["delivered"]["macs"] <= 0.6 * summary["original"]["macs"]


def test_what_is_heard_is_the_journal(tmp_path: Path) -> None:
    """`on_progress` gets the journal, so a caller may cancel the job through it."""
    from models.errors import Canceled

    with pytest.raises(Canceled):
        run(tmp_path / "out", on_progress=MemoryJournal.cancel)
