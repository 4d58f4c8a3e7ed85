"""Tests of server, worker, pipeline and client together, on the digits model. One test kills a worker."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from vitfit import Budget, Client

from service.core.processes import ROOT
from tests.support.running import wait_until
from tests.support.small_jobs import DIGITS, expected_artifacts


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    ready, command = tmp_path / "ready", [sys.executable, "-m", "service.serve", "--data", str(tmp_path / "data")]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--engine", "pipeline", "--ready-file", str(ready)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, "the server")
        yield ready.read_text().strip()
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_ends_well_and_evaluates_nothing_twice(address: str, tmp_path: Path) -> None:
    document = json.loads((DIGITS / "model.json").read_text())
    with Client(address) as client:
        model = client.upload_model(
            document["name"],
            document["options"],
            DIGITS / "weights.safetensors",
            document["preprocessing"],
            classes=document["classes"],
        )
        data = client.upload_dataset(DIGITS / "digits.npz")
        job = client.submit(model, [Budget("macs_keep", 0.6)], dataset=data, trials=4)
        before = wait_until(lambda: list(client.trials(job)), "the first trial")
        log = (tmp_path / "data" / "jobs" / job.id / "log.txt").read_text()
        (worker,) = re.findall(r"attempt 1 of \S+ runs in process (\d+)", log)
        assert client.get(job).stage == "searching" and len(before) < 4
        os.kill(int(worker), signal.SIGKILL)
        *_, last = client.watch(job, timeout_s=300)
        assert last.status == "succeeded", last.error
        assert (last.attempt, last.guarantee) == (2, "counted")
        trials = list(client.trials(job))
        assert [trial.number for trial in trials] == [0, 1, 2, 3]
        assert trials[: len(before)] == before
        plan = json.loads(client.download(job, "plan.json", tmp_path).read_text())
        assert {artifact.name for artifact in client.artifacts(job)} == expected_artifacts(plan)
        report = json.loads(client.download(job, "report.json", tmp_path).read_text())
        assert [row["number"] for row in report["trials"]] == [0, 1, 2, 3]
        assert report["delivered"]["macs"] <= 0.6 * report["original"]["macs"]
        assert report["delivered"]["correct"] >= report["original"]["correct"] - 15
