"""Tests of `make demo`. It fails when it should, and its server ends with it."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from vitfit import Client, Job, VitfitError

from benchmarks import demo
from latency.measuring.sampling import Interval

ROOT = Path(__file__).resolve().parents[2]
GOOD = Interval(0.58, 0.57, 0.595)
MEASURED = Job("job_1", "succeeded", guarantee="measured")
SIDE = {"macs": 2_000_000, "params": 1000}
REPORT: dict[str, Any] = {
    "original": SIDE,
    "delivered": SIDE,
    "ratio": {"predicted": 0.575},
    "parity": {"passed": True},
    "blocks": [{"name": "blocks.0", "heads": [3, 4], "neurons": [384, 512], "tokens": [40, 65]}],
}


def test_a_good_result_has_no_problems() -> None:
    assert demo.problems_of(MEASURED, GOOD, REPORT) == []


@pytest.mark.parametrize(
    ("job", "keep", "report", "hint"),
    [
        (MEASURED, Interval(0.61, 0.60, 0.62), REPORT, "Budget missed"),
        (Job("job_1", "succeeded", guarantee="none"), GOOD, REPORT, "guarantee"),
        (MEASURED, GOOD, {**REPORT, "parity": {"passed": False}}, "Parity failed"),
        (MEASURED, GOOD, {**REPORT, "parity": None}, "Parity failed"),
    ],
)
def test_each_failure_is_named(job: Job, keep: Interval, report: dict[str, Any], hint: str) -> None:
    (problem,) = demo.problems_of(job, keep, report)
    assert problem.startswith(hint) or hint in problem


def test_the_table_shows_counts_spread_prediction_and_blocks() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    before = demo.Figures(489, 500, Interval(2.0, 1.9, 2.1), 4_880_000)
    after = demo.Figures(487, 500, Interval(1.16, 1.1, 1.2), 3_900_000)
    console.print(demo.make_table(before, after, GOOD, REPORT))
    text = console.export_text()
    for cell in ("487/500  97.4 %", "1.160 ms  (1.100 .. 1.200)", "0.580  (0.570 .. 0.595)", "0.575", "3.90 MB"):
        assert cell in text
    assert "3 heads, 384 neurons, 40 tokens" in text and "4 heads, 512 neurons, 65 tokens" in text


def test_missing_files_are_a_problem_and_not_a_traceback(tmp_path: Path) -> None:
    (problem,) = demo.present(MEASURED, tmp_path, 1.0)
    assert "model.cpu.onnx" in problem


WAITING = """
import sys, time
from pathlib import Path
from benchmarks.serving import serving
with serving(Path(sys.argv[1])) as address:
    print(address, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_the_server_dies_with_the_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITING, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    with Client(address, retries=0) as client:
        client.health()
        process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 15
        with pytest.raises(VitfitError, match="server"):
            while time.monotonic() < end:
                client.health()
                time.sleep(0.05)
