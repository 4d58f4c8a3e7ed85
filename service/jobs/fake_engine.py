"""An engine without networks, for tests of the service and for trying out the API.

It has the interface of the pipeline: `run`, `describe_devices`, `describe_methods`, and a command that validates
(`python -m service.jobs.fake_engine`).

A job has `trials` trials, which take `VITFIT_FAKE_TRIAL_S` seconds each. It then measures for `VITFIT_FAKE_MEASURE_S`
seconds in a separate process, unless this is 0. At the end it writes small artifacts. Each evaluation of a trial adds a
line to `work/evaluated.txt`, so that a test can see whether a trial was evaluated twice.

Some names of a job cause trouble on purpose; `TROUBLE` lists them. The names of models and data sets can cause trouble
in their validation (`_validation_trouble`).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vitfit.child import ChildFailed, ask, die_with_parent
from vitfit.report import JobResult

from latency.measuring.machine_lock import measuring_lease
from models.errors import (
    BadData,
    CheckpointMismatch,
    DamagedFile,
    DeviceUnavailable,
    ImpossibleBudget,
    UnknownName,
    UnsafeFile,
    VitfitError,
)
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.jobs.journal import Journal

TROUBLE: Final = {
    "impossible": "ends with ImpossibleBudget",
    "bug": "raises an unexpected exception, whose text has a path of the machine",
    "greedy": "takes 16 GiB of memory",
    "busy": "ends as a process does that has used up its processor time",
    "dies": "kills its own process before the first trial of each attempt",
    "dies-once": "kills its own process in the first attempt",
    "deaf": "never checks whether it was canceled",
    "stubborn": "like deaf, and also ignores SIGTERM and starts a child process",
}

GREY: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
"""A PNG image of one grey pixel, in base64."""
REAL_NAMES: Final = ("vit_tiny_patch16_224", "deit_small_patch16_224")
"""Names of models in the examples of the OpenAPI document and of docs/api.md. The examples must work here too."""


def describe_devices() -> list[dict[str, Any]]:
    """Describe two devices: one that is measured, and one profile."""
    common = {"precision": "fp32", "source": "service/jobs/fake_engine.py"}
    return [
        {"name": "cpu", "kind": "measured", "reachable": True, "threads": 2, "description": "Fake CPU.", **common},
        {
            "name": "generic-mobile",
            "kind": "profile",
            "reachable": False,
            "threads": 1,
            "description": "Fake phone.",
            **common,
        },
    ]


def describe_methods() -> list[dict[str, Any]]:
    """Describe two methods with different criteria."""
    spaces: dict[str, Any] = {"space": "compact", "other_spaces": [], "bases": ["chosen"]}
    joint = {"name": "joint", "title": "All axes at once", "axes": ["heads", "neurons", "tokens"], "training": "none"}
    choices = {"other_spaces": ["paper"], "bases": ["rotated", "chosen"], "criteria": ["magnitude", "hsic"]}
    uniform = {"name": "uniform", "title": "The same everywhere", "axes": ["heads", "neurons"], "training": "none"}
    return [
        {**joint, **spaces, **choices},
        {**uniform, **spaces, "criteria": ["magnitude"]},
    ]


def run(
    request: JobRequest,
    files: JobFiles,
    journal: Journal,
    deliver: int | None = None,
    *,
    allowed: Sequence[Path] = (),
    cluster: str | None = None,
) -> JobResult:
    """Run a job. Trials that are already in the journal are not evaluated again."""
    journal.stage("validating")
    if files.dataset:
        _validate_dataset(files.dataset, allowed)
    if request.name == "impossible":
        raise ImpossibleBudget("The budget cannot be reached. The best value is 0.31 of the MACs.", reachable=0.31)
    if request.name == "bug":
        raise RuntimeError(f"a bug on purpose in {files.work}/model.onnx")
    journal.stage("searching")
    if deliver is None:
        _search(request, files, journal)
    rows = journal.trials()
    best = max(rows, key=lambda row: float(row["score"])) if deliver is None else rows[deliver]
    _measure(files, journal)
    journal.stage("exporting")
    _write_artifacts(files, best, len(rows))
    score = ("score", "0", str(best["score"]))
    return JobResult(
        rows=(score,), notes=(f"{len(rows)} trials.",), guarantee="predicted", delivered_trial=int(best["number"])
    )


def _search(request: JobRequest, files: JobFiles, journal: Journal) -> None:
    sleep_s = float(os.environ.get("VITFIT_FAKE_TRIAL_S", "0.02"))
    done = {int(row["number"]) for row in journal.trials()}
    _make_trouble(request.name, files)
    for number in range(request.trials):
        if number not in done:
            _trial(number, sleep_s, request, files, journal=journal)
        left_s = (request.trials - number - 1) * sleep_s
        journal.progress(number + 1, request.trials, _score(number), left_s)


def _trial(number: int, sleep_s: float, request: JobRequest, files: JobFiles, *, journal: Journal) -> None:
    with (files.work / "evaluated.txt").open("a") as log:
        log.write(f"{number} {os.getpid()}\n")
    _sleep(sleep_s, None if request.name in ("deaf", "stubborn") else journal)
    journal.record(
        {
            "number": number,
            "policy": {"heads": 0.5, "neurons": 0.5},
            "structure_key": f"{number:016x}",
            "score": _score(number),
            "accuracy": 0.9,
            "agreement": 0.95,
            "costs": {budget.metric: budget.limit for budget in request.budgets},
            "origin": "predicted",
            "seconds": sleep_s,
            "start": number == 0,
        }
    )


def _measure(files: JobFiles, journal: Journal) -> None:
    """Measure as a real job does: in a child process, while this process holds the machine lock."""
    seconds = float(os.environ.get("VITFIT_FAKE_MEASURE_S", "0"))
    if seconds:
        journal.stage("verifying")
        with measuring_lease(journal.note):
            journal.note("measuring candidate 1 of 1, process 1 of 1")
            try:
                ask(
                    [sys.executable, "-m", "service.jobs.fake_engine", "--measure", str(files.work)],
                    {"seconds": seconds},
                )
            except ChildFailed as error:
                raise DeviceUnavailable(f"The measuring process failed: {error}") from error


def _score(number: int) -> float:
    return -1.0 / (number + 1)


def _sleep(seconds: float, journal: Journal | None) -> None:
    """Sleep for `seconds`. With a journal, sleep in small pieces and check the journal between them."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if journal:
            journal.check()
        time.sleep(min(left, 0.02) if journal else left)


def _make_trouble(name: str | None, files: JobFiles) -> None:
    marker = files.work / "died"
    if name == "dies" or (name == "dies-once" and not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "greedy":
        bytearray(2**34)
    if name == "busy":
        os.kill(os.getpid(), signal.SIGXCPU)
    if name == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (files.work / "child.txt").write_text(str(child.pid))


def _write_artifacts(files: JobFiles, best: dict[str, Any], trials: int) -> None:
    report = {"delivered_trial": best["number"], "trials": trials}
    contents = {
        "model.onnx": bytes(range(256)) * 400,
        "plan.json": json.dumps(best["policy"]).encode(),
        "report.json": json.dumps(report).encode(),
        "patches.json": json.dumps(_pretended_patches()).encode(),
        "report.html": b"<!doctype html><title>Fake</title><p>Nothing was pruned.",
    }
    for name, content in contents.items():
        beside = files.work / f"{name}.tmp"  # the name is fixed, so that a test can let exactly this file fill the disk
        beside.write_bytes(content)
        os.replace(beside, files.artifacts / name)


def _pretended_patches() -> dict[str, Any]:
    """Return a fake patches.json: two images of 2 x 2 patches, and two blocks that remove one patch each."""
    images = [{"index": row, "png": GREY, "kept": [[0, 1, 2], kept]} for row, kept in enumerate([[0, 1], [1, 2]])]
    blocks = [{"block": "blocks.0", "kept": 3}, {"block": "blocks.1", "kept": 2}]
    return {"grid": [2, 2], "patches": 4, "blocks": blocks, "images": images}


def validate(document: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a model, a data set or a job. Raises: a subclass of VitfitError."""
    allowed = tuple(Path(root) for root in document.get("allowed", ()))
    if "job" in document:
        JobRequest.model_validate(document["job"])
        _validation_trouble(document["job"].get("name"))
        no_data: dict[str, Any] = {"images": 64, "labelled": False, "classes": None, "splits": {}, "warnings": []}
        return {
            "model": _validate_model(Path(document["model"])),
            "dataset": _validate_dataset(Path(document["dataset"]), allowed) if document["dataset"] else no_data,
            "criterion": document["job"].get("criterion") or "magnitude",
            "space": document["job"].get("space") or "compact",
            "warnings": [],
        }
    if "model" in document:
        return _validate_model(Path(document["model"]))
    return _validate_dataset(Path(document["dataset"]), allowed)


def _validate_model(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "model.json").read_text())
    _validation_trouble(config["name"])
    if not config["name"].startswith("fake") and config["name"] not in REAL_NAMES:
        raise UnknownName("model", config["name"], ["fake_tiny_patch4_32", "fake_small_patch4_32", *REAL_NAMES])
    if (folder / "weights.pth").exists():
        raise CheckpointMismatch("The checkpoint does not contain head.weight.", missing=["head.weight"])
    size = {"params": 1000, "macs": 2000, "image": [3, 32, 32], "classes": 10, "blocks": 2, "heads": 2}
    return {"name": config["name"], **size, "width": 8, "tokens": 65, "key": "0123456789abcdef"}


def _validate_dataset(folder: Path, allowed: Sequence[Path]) -> dict[str, Any]:
    config = json.loads((folder / "dataset.json").read_text())
    _validation_trouble(config["filename"].partition(".")[0])
    if config["source"] == "path":
        _validate_path(Path(config["path"]), allowed)
    else:
        (data,) = folder.glob("data.*")
        if data.suffix != ".tar" and not zipfile.is_zipfile(data):
            raise DamagedFile(f"{config['filename']} is not a zip file, or its end is missing. Upload it again.")
    return {"images": 8, "labelled": True, "classes": 2, "splits": {}, "warnings": []}


def _validate_path(path: Path, allowed: Sequence[Path]) -> None:
    if not any(path.is_relative_to(root) for root in allowed):
        raise UnsafeFile(f"The folder {path} is not below an allowed folder.")
    if not any(path.iterdir()):
        raise BadData(f"The folder {path} is empty.")


def _validation_trouble(name: str | None) -> None:
    if name == "slow":
        time.sleep(600)
    if name == "validation-dies":
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Validate: read one JSON object from stdin, and write one to stdout.

    With `--measure`, the process is the measuring child of a job instead.
    """
    answer: dict[str, Any]
    if "--measure" in sys.argv:
        die_with_parent()
        time.sleep(json.load(sys.stdin)["seconds"])
        json.dump({"samples_ms": []}, sys.stdout)
        return
    try:
        answer = {"ok": True, "description": validate(json.load(sys.stdin))}
    except VitfitError as error:
        answer = {"ok": False, "error": error.to_json()}
    with contextlib.suppress(BrokenPipeError):
        json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
