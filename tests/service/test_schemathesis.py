"""Schemathesis over the whole interface: what the description allows, what it does not, and calls in sequence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.agents import token
from tests.client.served import served

pytestmark = pytest.mark.slow
QUICK = {"VITFIT_ANONYMOUS": "0", "VITFIT_FAKE_TRIAL_S": "0.01", "VITFIT_REQUESTS_PER_MINUTE": "1000000"}
NOT_CHECKED = "positive_data_acceptance"
"""A name that fits the schema may still be one that nothing has: 422."""


@pytest.mark.parametrize("phases", ["examples,coverage,fuzzing", "stateful"])
def test_no_failure(tmp_path: Path, phases: str) -> None:
    runner = str(Path(sys.executable).with_name("st"))
    with served(tmp_path, "--data", str(tmp_path / "data"), "--port", "0", **QUICK) as address:
        header = f"Authorization: Bearer {token(tmp_path / 'data', 'admin')}"
        command = [
            runner,
            "run",
            f"{address}/openapi.json",
            "--phases",
            phases,
            "--max-examples",
            "20",
            "--seed",
            "1",
            "-H",
            header,
        ]
        command += [
            "--exclude-checks",
            NOT_CHECKED,
            "--exclude-path-regex",
            "/events$",
        ]  # a stream has no end of its own
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 0, done.stdout[-6000:]
