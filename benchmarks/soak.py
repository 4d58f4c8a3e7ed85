"""Claim: at least 200 random kills lose no job, deliver none twice, repeat no finished trial and leave no orphans.

    python -m benchmarks.soak                                   about 10 minutes on 2 cores

A server with the public fake engine always has jobs to run. Again and again, at a random moment, one of these things
happens. The server is killed or stopped. A worker is killed, or it sleeps longer than its lease. A measuring child of a
worker is killed. Or the power is cut: every process is killed at once, the data folder is copied as it is, and the
server starts from the copy. Each time, the script reads from the database which trials have finished.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
from vitfit.child import STARTS

from benchmarks.machine import machine
from benchmarks.serving import Serving, processes

WAYS = {
    "kill the server": 3,
    "stop the server": 1,
    "kill a worker": 4,
    "a worker sleeps": 1,
    "cut the power": 2,
    "kill a measuring child": 3,
}
MEASURING = "--measure"
LEASE_S, TRIAL_S, TRIALS, WAITING = 3.0, 0.15, 12, 6
ENVIRONMENT = {
    "VITFIT_ENGINE": "fake",
    "VITFIT_FAKE_TRIAL_S": str(TRIAL_S),
    "VITFIT_LEASE_S": str(LEASE_S),
    "VITFIT_WORKERS": "3",
    "VITFIT_MAX_CRASHES": "100000",
    "VITFIT_FAKE_MEASURE_S": "0.3",
}
FINISHED = ("succeeded", "failed", "canceled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--way", action="append", choices=list(WAYS), help="only this; may be repeated")
    parser.add_argument("--most-children", type=int, default=STARTS - 1, help="killed of one worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("build/soak.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitfit-soak-") as folder:
        ways = {way: WAYS[way] for way in options.way or WAYS}
        found = Soak(Path(folder), random.Random(options.seed), options.most_children, ways).run(options.kills)
    for name, value in found.items():
        print(f"{name}: {value}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**found, **machine()}, indent=1))
    if any(found[name] for name in ("lost", "delivered twice", "trials run again", "orphans")):
        sys.exit(1)


class Soak:
    def __init__(self, folder: Path, draw: random.Random, most_killed: int, ways: dict[str, int]) -> None:
        self._ways = ways
        self._folder, self._draw, self._copies = folder, draw, 0
        self._data = folder / "data0"
        self._server = Serving(folder, VITFIT_LOCKS=str(folder), **ENVIRONMENT)
        self._client = httpx.Client()
        self._jobs: list[str] = []
        self._model = ""
        self._most_killed = most_killed
        self._killed = collections.Counter[int]()
        self._finished: dict[str, dict[int, int]] = collections.defaultdict(dict)

    def run(self, kills: int) -> dict[str, Any]:
        began, done = time.monotonic(), collections.Counter[str]()
        self._start()
        self._model = self._client.post("/v1/models", json={"name": "fake_tiny_patch4_32"}).json()["id"]
        while sum(done.values()) < kills:
            self._keep_busy()
            time.sleep(self._draw.uniform(0.05, 1.2))
            way = self._draw.choices(list(self._ways), list(self._ways.values()))[0]
            if self._trouble(way):
                done[way] += 1
                print(f"{sum(done.values())} of {kills}: {way}", flush=True)
        states = self._wait()
        checked = {
            "kills": dict(done),
            "jobs": len(self._jobs),
            "lost": {job: self._why(job) for job, state in states.items() if state != "succeeded"},
            "delivered twice": [job for job in self._jobs if self._endings(job) > 1],
            "without an end in the log": sum(self._endings(job) == 0 for job in self._jobs),
            "trials run again": [job for job in self._jobs if self._run_again(job)],
            "attempts, at most": max(self._client.get(f"/v1/jobs/{job}").json()["attempt"] for job in self._jobs),
            "minutes": round((time.monotonic() - began) / 60, 1),
        }
        self._server.end()
        return {**checked, "orphans": list(processes(str(self._folder)))}

    def _keep_busy(self) -> None:
        unfinished = sum(self._client.get("/healthz").json()["jobs"].values())
        for _ in range(WAITING - unfinished):
            body = {"model": self._model, "budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": TRIALS}
            self._jobs.append(self._client.post("/v1/jobs", json=body).json()["id"])

    def _trouble(self, way: str) -> bool:
        """Make trouble in the given way. Return False if there was no process to disturb."""
        workers = self._named("service.jobs.worker")
        if "worker" in way and not workers:
            return False
        if way == "kill a worker":
            self._remember()
            return signalled(self._draw.choice(workers), signal.SIGKILL)
        elif way == "kill a measuring child":
            return self._kill_child()
        elif way == "a worker sleeps":
            pid = self._draw.choice(workers)
            if not signalled(pid, signal.SIGSTOP):
                return False
            time.sleep(LEASE_S + 2)
            self._remember()
            signalled(pid, signal.SIGCONT)  # no effect if the server has killed it already
        elif way == "cut the power":
            self._cut()
        else:
            self._remember()
            self._server.end(signal.SIGKILL if way == "kill the server" else signal.SIGTERM)
            self._start()
        return True

    def _kill_child(self) -> bool:
        """Kill a measuring child, but only a limited number of times for each worker.

        After the last start of a child, the worker gives up and its job fails, as it should. Such a job would count as
        lost.
        """
        doomed = [child for child in self._named(MEASURING) if self._killed[parent_of(child)] < self._most_killed]
        if not doomed:
            return False
        child = self._draw.choice(doomed)
        self._killed[parent_of(child)] += 1
        return signalled(child, signal.SIGKILL)

    def _cut(self) -> None:
        while running := processes(str(self._folder)):  # the first list can miss a process that is just starting
            for pid in running:
                signalled(pid, signal.SIGKILL)
            time.sleep(0.02)
        self._server.end(signal.SIGKILL)
        self._copies += 1
        copy = self._folder / f"data{self._copies}"
        shutil.copytree(self._data, copy)
        shutil.rmtree(self._data)
        self._data = copy
        self._remember()
        self._start()

    def _remember(self) -> None:
        """Store how often the evaluation of each finished trial was begun. This number must not change later."""
        with closing(sqlite3.connect(self._data / "vitfit.sqlite", timeout=30)) as database:
            finished = database.execute("select job_id, number from trials").fetchall()
        begun = {job: self._begun(job) for job, _ in finished}
        for job, number in finished:
            self._finished[job].setdefault(number, begun[job][number])

    def _begun(self, job: str) -> collections.Counter[int]:
        file = self._data / "jobs" / job / "work" / "evaluated.txt"
        return collections.Counter(int(line.split()[0]) for line in file.read_text().splitlines())

    def _why(self, job: str) -> str:
        found = self._client.get(f"/v1/jobs/{job}").json()
        return f"{found.get('status')}: {(found.get('error') or found).get('detail')}"

    def _run_again(self, job: str) -> bool:
        begun = self._begun(job)
        return any(begun[number] != times for number, times in self._finished[job].items())

    def _endings(self, job: str) -> int:
        """Count the ends of the job in its log.

        The count is 0 if the worker was killed after it stored the end in the database and before it wrote to the log.
        """
        return (self._data / "jobs" / job / "log.txt").read_text().count("stored the end of the job")

    def _wait(self) -> dict[str, str]:
        end = time.monotonic() + 300
        while True:
            states = {job: self._client.get(f"/v1/jobs/{job}").json().get("status", "gone") for job in self._jobs}
            if all(state in (*FINISHED, "gone") for state in states.values()) or time.monotonic() > end:
                return states
            time.sleep(1)

    def _named(self, part: str) -> list[int]:
        return [pid for pid, command in processes(str(self._folder)).items() if part in command]

    def _start(self) -> None:
        self._client.close()
        self._client = httpx.Client(base_url=self._server.start(self._data), timeout=60)


def parent_of(pid: int) -> int:
    """Return the process id of the parent, or 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def signalled(pid: int, number: signal.Signals) -> bool:
    """Send a signal. Return False if the process has already ended by itself."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
