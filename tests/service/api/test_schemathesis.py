"""Tests of the interface with Schemathesis: valid requests, invalid requests, and sequences of calls."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.core.processes import ROOT
from tests.support.agents import token
from tests.support.served import served

pytestmark = pytest.mark.slow
QUICK = {"VITFIT_ANONYMOUS": "0", "VITFIT_FAKE_TRIAL_S": "0.01", "VITFIT_REQUESTS_PER_MINUTE": "1000000"}
COMMON = [
    *("--seed", "1"),
    *(
        "--exclude-checks",
        "positive_data_acceptance",
    ),  # a name may fit the schema and still not exist: 422
    *("--exclude-path-regex", "/events$"),  # an event stream does not end by itself
]
ACCESS = re.compile(r'"(\w+) (/v1/[^ ?"]*)[^"]*" (\d+)')


def run(tmp_path: Path, *options: str) -> str:
    """Run Schemathesis and return the server's log. Fail with the output of Schemathesis."""
    runner, folder = str(Path(sys.executable).with_name("st")), tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").touch()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FOLDER": str(folder),
        # The hooks would also turn bad bodies into good ones, so only stateful runs use them.
        **({"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks"} if "stateful" in options else {}),
    }
    serve = ("--data", str(tmp_path / "data"), "--port", "0")
    with served(tmp_path, *serve, **QUICK, VITFIT_ALLOWED_ROOTS=str(folder)) as address:
        header = f"Authorization: Bearer {token(tmp_path / 'data', 'admin')}"
        command = [runner, "run", f"{address}/openapi.json", "-H", header, *COMMON, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-6000:]
    return (tmp_path / "server.log").read_text()


def test_no_failure_one_by_one(tmp_path: Path) -> None:
    run(tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "20")


def test_no_failure_in_sequence_and_sequences_get_far(tmp_path: Path) -> None:
    log = run(tmp_path, "--phases", "stateful", "--mode", "positive", "--max-examples", "150")
    done = set()
    for method, path, status in ACCESS.findall(log):
        if status.startswith("2"):
            done.add(f"{method} {re.sub(r'_[0-9a-f]{20}', '', path)}")
    assert done >= {"POST /v1/models", "POST /v1/datasets", "POST /v1/jobs", "POST /v1/devices", "POST /v1/agents"}
    assert len([step for step in done if re.search("/(job|mdl|dat)", step)]) >= 5, done
