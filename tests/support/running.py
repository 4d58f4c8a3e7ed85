"""A real server in its own process, with the fake engine, and the few calls that most tests need."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from service.core.processes import child_environment

PATIENCE_S = 60.0
FINISHED = ("succeeded", "failed", "canceled")


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true value of `condition`. Fail after a generous time."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {PATIENCE_S:g} s in vain for: {what}")


def is_alive(pid: int) -> bool:
    """Return whether the process exists and still runs. A process that only waits to be reaped has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Return the processes that this process has started and that still run."""
    found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [child for child in found if is_alive(child) and _parent(child) == pid]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


class Server:
    """The process `python -m service.serve --engine fake` on a data folder. It may start again on the same folder."""

    def __init__(self, data: Path, **environment: str) -> None:
        self.data = data
        self._environment = child_environment(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client()

    def start(self) -> "Server":
        ready = self.data.with_name(f"{self.data.name}.ready")
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "service.serve", "--data", str(self.data), "--port", "0", "--engine", "fake"]
        with self.data.with_name(f"{self.data.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--ready-file", str(ready)], env=self._environment, stdout=log, stderr=log
            )
        wait_until(lambda: ready.exists() or self._process is None or self._process.poll() is not None, "the server")
        self.client = httpx.Client(base_url=ready.read_text().strip(), timeout=PATIENCE_S)
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to the server, and return its exit status."""
        self.client.close()
        if self._process is None:
            return 0
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)

    def model(self) -> str:
        answer = self.client.post("/v1/models", json={"name": "fake_tiny_patch4_32"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def submit(self, model: str, **changes: Any) -> str:
        answer = self.client.post("/v1/jobs", json=job_body(model, **changes))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait(self, job_id: str, *status: str) -> dict[str, Any]:
        """Wait until the job has one of these states, and return it. Without states, wait until it is finished."""
        wait_until(lambda: self.job(job_id)["status"] in (status or FINISHED), f"{job_id} {status}")
        return self.job(job_id)

    def trials(self, job_id: str) -> list[int]:
        """Return the numbers of the finished trials."""
        rows = self.client.get(f"/v1/jobs/{job_id}/trials", params={"page_size": 500}).json()["trials"]
        return [row["number"] for row in rows]

    def wait_for_trials(self, job_id: str, count: int) -> list[int]:
        wait_until(lambda: len(self.trials(job_id)) >= count, f"{count} trials")
        return self.trials(job_id)

    def evaluated(self, job_id: str) -> list[tuple[int, int]]:
        """Return (trial number, process) for each evaluation that has begun."""
        file = self.data / "jobs" / job_id / "work" / "evaluated.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(number), int(pid)) for number, pid in (line.split() for line in lines)]


def job_body(model: str, **changes: Any) -> dict[str, Any]:
    """Return a request for a job. Keyword arguments change it."""
    return {"model": model, "budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": 4, **changes}
