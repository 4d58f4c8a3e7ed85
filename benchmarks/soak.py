"""Claim: at least 200 random kills over server and workers: no job lost, none delivered twice, no finished trial run again, no orphans.

    python -m benchmarks.soak                                   about 10 minutes on 2 cores

A server with the public fake engine has jobs to do all the time. Again and again, at a random moment, the server is killed or stopped, a
worker is killed or sleeps beyond its lease, or the power is cut: every process is killed at once, the data folder is copied as it is, and the
server starts from the copy. What had finished before each kill is read from the database.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import machine

WAYS = {"kill the server": 3, "stop the server": 1, "kill a worker": 4, "a worker sleeps": 1, "cut the power": 2}
LEASE_S, TRIAL_S, TRIALS, WAITING = 3.0, 0.15, 12, 6
ENVIRONMENT = {
    "VITFIT_ENGINE": "fake", "VITFIT_ANONYMOUS": "1", "VITFIT_FAKE_TRIAL_S": str(TRIAL_S), "VITFIT_LEASE_S": str(LEASE_S),
    "VITFIT_WORKERS": "3", "VITFIT_MAX_CRASHES": "100000",
}  # fmt: skip
FINISHED = ("succeeded", "failed", "canceled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("build/soak.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitfit-soak-") as folder:
        found = Soak(Path(folder), random.Random(options.seed)).run(options.kills)
    for name, value in found.items():
        print(f"{name}: {value}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**found, **machine()}, indent=1))
    if any(found[name] for name in ("lost", "delivered twice", "trials run again", "orphans")):
        sys.exit(1)


class Soak:
    def __init__(self, folder: Path, draw: random.Random) -> None:
        self._folder, self._draw, self._copies = folder, draw, 0
        self._data = folder / "data0"
        self._server: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client()
        self._jobs: list[str] = []
        self._model = ""
        self._finished: dict[str, dict[int, int]] = collections.defaultdict(dict)

    def run(self, kills: int) -> dict[str, Any]:
        began, done = time.monotonic(), collections.Counter[str]()
        self._start()
        self._model = self._client.post("/v1/models", json={"name": "fake_tiny_patch4_32"}).json()["id"]
        while sum(done.values()) < kills:
            self._keep_busy()
            time.sleep(self._draw.uniform(0.05, 1.2))
            way = self._draw.choices(list(WAYS), list(WAYS.values()))[0]
            if self._trouble(way):
                done[way] += 1
                print(f"{sum(done.values())} of {kills}: {way}", flush=True)
        states = self._wait()
        checked = {
            "kills": dict(done),
            "jobs": len(self._jobs),
            "lost": [job for job, state in states.items() if state != "succeeded"],
            "delivered twice": [job for job in self._jobs if self._endings(job) > 1],
            "trials run again": [job for job in self._jobs if self._run_again(job)],
            "attempts, at most": max(self._client.get(f"/v1/jobs/{job}").json()["attempt"] for job in self._jobs),
            "minutes": round((time.monotonic() - began) / 60, 1),
        }
        self._end(signal.SIGTERM)
        return {**checked, "orphans": list(self._processes())}

    def _keep_busy(self) -> None:
        unfinished = sum(self._client.get("/healthz").json()["jobs"].values())
        for _ in range(WAITING - unfinished):
            body = {"model": self._model, "budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": TRIALS}
            self._jobs.append(self._client.post("/v1/jobs", json=body).json()["id"])

    def _trouble(self, way: str) -> bool:
        """False: there was no worker to trouble."""
        workers = [pid for pid, command in self._processes().items() if "service.worker" in command]
        if "worker" in way and not workers:
            return False
        if way == "kill a worker":
            self._remember()
            return _signalled(self._draw.choice(workers), signal.SIGKILL)
        elif way == "a worker sleeps":
            pid = self._draw.choice(workers)
            if not _signalled(pid, signal.SIGSTOP):
                return False
            time.sleep(LEASE_S + 2)
            self._remember()
            _signalled(pid, signal.SIGCONT)  # unless its server has killed it already
        elif way == "cut the power":
            self._cut()
        else:
            self._remember()
            self._end(signal.SIGKILL if way == "kill the server" else signal.SIGTERM)
            self._start()
        return True

    def _cut(self) -> None:
        for pid in self._processes():
            _signalled(pid, signal.SIGKILL)
        assert self._server is not None
        self._server.wait(timeout=30)
        self._copies += 1
        copy = self._folder / f"data{self._copies}"
        shutil.copytree(self._data, copy)
        shutil.rmtree(self._data)
        self._data = copy
        self._remember()
        self._start()

    def _remember(self) -> None:
        """Of each trial that has finished by now, how often its evaluation was begun: it must stay so."""
        with closing(sqlite3.connect(self._data / "vitfit.sqlite", timeout=30)) as database:
            finished = database.execute("select job_id, number from trials").fetchall()
        begun = {job: self._begun(job) for job, _ in finished}
        for job, number in finished:
            self._finished[job].setdefault(number, begun[job][number])

    def _begun(self, job: str) -> collections.Counter[int]:
        file = self._data / "jobs" / job / "work" / "evaluated.txt"
        return collections.Counter(int(line.split()[0]) for line in file.read_text().splitlines())

    def _run_again(self, job: str) -> bool:
        begun = self._begun(job)
        return any(begun[number] != times for number, times in self._finished[job].items())

    def _endings(self, job: str) -> int:
        """As the log has them: none when the worker was killed between the database and the log."""
        return (self._data / "jobs" / job / "log.txt").read_text().count("stored the end of the job")

    def _wait(self) -> dict[str, str]:
        end = time.monotonic() + 300
        while True:
            states = {job: self._client.get(f"/v1/jobs/{job}").json().get("status", "gone") for job in self._jobs}
            if all(state in (*FINISHED, "gone") for state in states.values()) or time.monotonic() > end:
                return states
            time.sleep(1)

    def _processes(self) -> dict[int, str]:
        """Everything that was started for this folder."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                except OSError:
                    continue
                if str(self._folder) in command and state != "Z":
                    found[int(entry.name)] = command
        return found

    def _start(self) -> None:
        ready = self._folder / "ready"
        ready.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "service.serve",
            "--data",
            str(self._data),
            "--port",
            "0",
            "--ready-file",
            str(ready),
        ]
        with (self._folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log)
        while not ready.exists():
            assert self._server.poll() is None, (self._folder / "server.log").read_text()[-2000:]
            time.sleep(0.02)
        self._client.close()
        self._client = httpx.Client(base_url=ready.read_text().strip(), timeout=60)

    def _end(self, number: signal.Signals) -> None:
        assert self._server is not None
        self._server.send_signal(number)
        self._server.wait(timeout=60)


def _signalled(pid: int, number: signal.Signals) -> bool:
    """False: it has ended by itself meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
