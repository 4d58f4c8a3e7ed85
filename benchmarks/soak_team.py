"""Claim: with PostgreSQL, S3 and Ray, kills lose no job, end none twice, repeat no finished trial, leave no orphans.

    python -m benchmarks.soak_team                              1 hour on one core; needs PostgreSQL, moto and ray

This is `benchmarks.soak` for two servers. They share one database and one bucket, but each has a folder of its own. The
first server runs its jobs itself, the second server runs them on a Ray cluster of two nodes. Again and again, at a
random moment, one of these things happens. A server, a worker, a dispatcher or a Ray node is killed. A server is
stopped. Or a worker sleeps longer than its lease. After every 8 of these events, PostgreSQL or the bucket is
unavailable for 5 s. A trigger in the database records each end of a job.
"""

import argparse
import collections
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from ray.cluster_utils import Cluster

from benchmarks.machine import machine
from benchmarks.serving import Serving, processes
from benchmarks.soak import FINISHED, signalled
from service.core.processes import ROOT
from tests.support.postgres import Postgres
from tests.support.s3 import S3

WAYS = {
    "kill a server": 4,
    "stop a server": 1,
    "kill a worker": 5,
    "a worker sleeps": 1,
    "kill a Ray node": 2,
    "kill a dispatcher": 1,
}
AWAY_S, KILLS_BETWEEN = 5.0, 8
LEASE_S, TRIAL_S, TRIALS, WAITING = 3.0, 0.15, 12, 6
NODES = ("node-a", "node-b")
AUDIT = """
CREATE TABLE ends (job text, status text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION note_end() RETURNS trigger AS $$
BEGIN INSERT INTO ends (job, status) VALUES (NEW.id, NEW.status); RETURN NEW; END $$ LANGUAGE plpgsql;
CREATE TRIGGER ended AFTER UPDATE OF status ON jobs FOR EACH ROW
WHEN (NEW.status IN ('succeeded', 'failed', 'canceled')) EXECUTE FUNCTION note_end();
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("build/soak-team.json"))
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto logs one line for every request
    with tempfile.TemporaryDirectory(prefix="vitfit-soak-") as folder:
        with world(Path(folder)) as (database, bucket, cluster, nodes, environment):
            team = Team(
                Path(folder),
                random.Random(options.seed),
                database,
                bucket,
                cluster=cluster,
                nodes=nodes,
                environment=environment,
            )
            found = team.run(options.kills)
        found["orphans"] = list(processes(folder).values())
    for name, value in found.items():
        print(f"{name}: {value}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**found, **machine()}, indent=1))
    if any(found[name] for name in ("lost", "ended twice", "files missing", "trials run again", "orphans")):
        sys.exit(1)


@contextmanager
def world(folder: Path) -> Iterator[tuple[Postgres, S3, Cluster, dict[str, Any], dict[str, str]]]:
    """Start PostgreSQL, a bucket, and a Ray cluster whose head takes no jobs.

    Yield them and the servers' environment.
    """
    with ExitStack() as stack:
        database, bucket = stack.enter_context(Postgres()), stack.enter_context(S3())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        bucket.announce(patch)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        stack.callback(cluster.shutdown)
        nodes = {name: begin_node(cluster, folder / name) for name in NODES}
        environment = {
            "VITFIT_DATABASE_URL": database.url("postgres"),
            "VITFIT_STORAGE_URL": bucket.fresh(),
            "VITFIT_LOCKS": str(folder),
            "VITFIT_ENGINE": "fake",
            "VITFIT_FAKE_TRIAL_S": str(TRIAL_S),
            "VITFIT_LEASE_S": str(LEASE_S),
            "VITFIT_WORKERS": "2",
            "VITFIT_MAX_CRASHES": "100000",
        }
        yield database, bucket, cluster, nodes, environment


def begin_node(cluster: Cluster, folder: Path) -> Any:
    return cluster.add_node(num_cpus=0, resources={"vitfit_jobs": 1}, env_vars={"VITFIT_DATA": str(folder)})


class Team:
    def __init__(
        self,
        folder: Path,
        draw: random.Random,
        database: Postgres,
        bucket: S3,
        *,
        cluster: Cluster,
        nodes: dict[str, Any],
        environment: dict[str, str],
    ) -> None:
        self._folder, self._draw, self._database, self._bucket = folder, draw, database, bucket
        self._cluster, self._nodes = cluster, nodes
        ray = {"VITFIT_RAY": cluster.address, "VITFIT_RAY_JOBS": "true"}
        for name in ("one", "two"):
            (folder / name).mkdir()
        self._servers = {
            "one": Serving(folder / "one", **environment),
            "two": Serving(folder / "two", **environment, **ray),
        }
        self._addresses: dict[str, str] = {}
        self._jobs: list[str] = []
        self._finished: dict[tuple[str, int], int] = {}

    def run(self, kills: int) -> dict[str, Any]:
        began, done = time.monotonic(), collections.Counter[str]()
        for name in self._servers:
            self._start(name)
        self._database.run_sql(AUDIT)
        self._model = self._ask("one", "POST", "/v1/models", json={"name": "fake_tiny_patch4_32"}).json()["id"]
        while (killed := sum(done[way] for way in WAYS)) < kills:
            self._keep_busy()
            time.sleep(self._draw.uniform(0.05, 1.2))
            way = self._draw.choices(list(WAYS), list(WAYS.values()))[0]
            if self._trouble(way):
                done[way] += 1
                print(f"{killed + 1} of {kills}: {way}", flush=True)
                if (killed + 1) % KILLS_BETWEEN == 0:
                    done[self._outage()] += 1
        states, begun = self._wait(), self._begun()
        found = {
            "done": dict(done),
            "jobs": len(self._jobs),
            "lost": {job: state for job, state in states.items() if state != "succeeded"},
            "ended twice": [job for job, ends in self._ends().items() if ends != 1],
            "files missing": [job for job in self._jobs if not self._has_files(job)],
            "trials run again": [key for key, times in self._finished.items() if begun[key] != times],
            "ran on": {
                name: len(list((self._folder / name).glob("**/evaluated.txt"))) for name in (*self._servers, *NODES)
            },
            "minutes": round((time.monotonic() - began) / 60, 1),
        }
        for server in self._servers.values():
            server.end()
        return found

    def _keep_busy(self) -> None:
        unfinished = sum(self._ask("one", "GET", "/healthz").json()["jobs"].values())
        for _ in range(WAITING - unfinished):
            body = {"model": self._model, "budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": TRIALS}
            name, key = self._draw.choice(list(self._servers)), {"Idempotency-Key": uuid.uuid4().hex}
            self._jobs.append(self._ask(name, "POST", "/v1/jobs", json=body, headers=key).json()["id"])

    def _trouble(self, way: str) -> bool:
        """Make trouble in the given way. Return False if there was no process to disturb."""
        self._remember()
        if "server" in way:
            name = self._draw.choice(list(self._servers))
            self._servers[name].end(signal.SIGKILL if "kill" in way else signal.SIGTERM)
            self._start(name)
        elif way == "kill a Ray node":
            name = self._draw.choice(NODES)
            self._cluster.remove_node(self._nodes[name], allow_graceful=False)
            self._nodes[name] = begin_node(self._cluster, self._folder / name)
        else:
            running = self._named("service.cluster.dispatcher" if "dispatcher" in way else "service.jobs.worker")
            return bool(running) and self._trouble_process(self._draw.choice(running), sleeps="sleeps" in way)
        return True

    def _trouble_process(self, pid: int, sleeps: bool) -> bool:
        if not sleeps:
            return signalled(pid, signal.SIGKILL)
        if not signalled(pid, signal.SIGSTOP):
            return False
        time.sleep(LEASE_S + 2)
        self._remember()
        signalled(pid, signal.SIGCONT)
        return True

    def _outage(self) -> str:
        """Make PostgreSQL or S3 unavailable for AWAY_S seconds.

        Nothing is killed during this time. Jobs continue or wait.
        """
        which = self._draw.choice(("PostgreSQL", "S3"))
        away: Any = self._database if which == "PostgreSQL" else self._bucket
        away.stop()
        time.sleep(AWAY_S)
        away.start()
        print(f"{which} was away for {AWAY_S:g} s", flush=True)
        return f"{which} away"

    def _remember(self) -> None:
        """Store how often the evaluation of each finished trial was begun. This number must not change later."""
        with self._connection() as connection:
            finished = connection.execute("SELECT job_id, number FROM trials").fetchall()
        begun = self._begun()
        for key in finished:
            self._finished.setdefault(key, begun[key])

    def _begun(self) -> collections.Counter[tuple[str, int]]:
        """Count how often the evaluation of each trial was begun, on all machines together."""
        return collections.Counter(
            (file.parts[-3], int(line.split()[0]))
            for file in self._folder.glob("*/**/jobs/*/work/evaluated.txt")
            for line in file.read_text().splitlines()
        )

    def _ends(self) -> collections.Counter[str]:
        with self._connection() as connection:
            return collections.Counter(job for (job,) in connection.execute("SELECT job FROM ends"))

    def _has_files(self, job: str) -> bool:
        """Return whether both servers can deliver the job's file."""
        path = f"/v1/jobs/{job}/artifacts/model.onnx"
        return all(self._ask(name, "GET", path).status_code == 200 for name in self._servers)

    def _wait(self) -> dict[str, str]:
        end = time.monotonic() + 300
        while True:
            states = {
                job: self._ask("one", "GET", f"/v1/jobs/{job}").json().get("status", "gone") for job in self._jobs
            }
            if all(state in (*FINISHED, "gone") for state in states.values()) or time.monotonic() > end:
                return states
            time.sleep(1)

    def _ask(self, server: str, method: str, path: str, **given: Any) -> httpx.Response:
        """Send a request.

        Repeat it for up to 120 s while the server answers 503 (something is unavailable), as clients should.
        """
        end = time.monotonic() + 120
        while True:
            answer = httpx.request(method, f"{self._addresses[server]}{path}", timeout=60, **given)
            if answer.status_code != 503 or time.monotonic() > end:
                return answer
            time.sleep(1)

    def _connection(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._database.url("postgres"))

    def _named(self, part: str) -> list[int]:
        return [pid for pid, command in processes(str(self._folder)).items() if part in command]

    def _start(self, name: str) -> None:
        self._addresses[name] = self._servers[name].start(self._folder / name / "data")


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    main()
