"""Tests of complete jobs on a Ray cluster with two nodes on this machine.

One server on PostgreSQL and a bucket starts the jobs.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.core.processes import ROOT
from tests.support.postgres import Postgres
from tests.support.running import Server, wait_until
from tests.support.s3 import S3

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray: Any = pytest.importorskip("ray")
cluster_utils: Any = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow
TRIALS, TRIAL_S = 30, 0.2


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster with a head that takes no jobs, and two nodes with one job slot and one folder each."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for name in ("a", "b"):
            cluster.add_node(num_cpus=0, resources={"vitfit_jobs": 1}, env_vars={"VITFIT_DATA": str(tmp_path / name)})
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def server(nodes: Any, postgres: Postgres, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    s3.announce(monkeypatch)
    found = Server(
        tmp_path / "server",
        VITFIT_DATABASE_URL=postgres.fresh(),
        VITFIT_STORAGE_URL=s3.fresh(),
        VITFIT_RAY=nodes.address,
        VITFIT_RAY_JOBS="true",
        VITFIT_FAKE_TRIAL_S=str(TRIAL_S),
        VITFIT_LEASE_S="3",
        VITFIT_WORKERS="4",
    )
    try:
        yield found.start()
    finally:
        found.end()


def evaluated(folder: Path) -> dict[str, list[int]]:
    """Return the numbers of the trials that began on a node, by job."""
    files = folder.glob("jobs/*/work/evaluated.txt")
    return {file.parts[-3]: [int(line.split()[0]) for line in file.read_text().splitlines()] for file in files}


def node_of(tmp_path: Path, job: str) -> str:
    found: str = wait_until(
        lambda: next((n for n in ("a", "b") if job in evaluated(tmp_path / n)), None), "a node to begin"
    )
    return found


def test_jobs_run_on_the_nodes_and_their_files_come_back(server: Server, tmp_path: Path) -> None:
    model = server.model()
    jobs = [server.submit(model, trials=4) for _ in range(4)]
    for job in jobs:
        done = server.wait(job)
        assert (done["status"], done["attempt"]) == ("succeeded", 1)
        assert server.client.get(f"/v1/jobs/{job}/artifacts/model.onnx").status_code == 200
        wait_until(lambda: "stored the end" in server.client.get(f"/v1/jobs/{job}/log").text, "the log")  # noqa: B023
    ran = [set(evaluated(tmp_path / name)) for name in ("a", "b")]
    assert ran[0] | ran[1] == set(jobs) and not ran[0] & ran[1] and all(ran)
    assert not evaluated(server.data)


def test_a_killed_node_costs_the_trial_in_flight(server: Server, nodes: Any, tmp_path: Path) -> None:
    job = server.submit(server.model(), trials=TRIALS)
    first = node_of(tmp_path, job)
    wait_until(lambda: len(server.trials(job)) > 3, "some trials")
    nodes.remove_node(with_folder(nodes, tmp_path / first), allow_graceful=False)
    done = server.wait(job)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    (there,), (here,) = (evaluated(tmp_path / name).values() for name in (first, "ab".replace(first, "")))
    assert sorted({*there, *here}) == list(range(TRIALS)) and len(set(there) & set(here)) <= 1, "the one in flight"


def with_folder(nodes: Any, folder: Path) -> Any:
    return next(n for n in nodes.worker_nodes if n._ray_params.env_vars["VITFIT_DATA"] == str(folder))


def test_a_cancel_reaches_the_node(server: Server, tmp_path: Path) -> None:
    job = server.submit(server.model(), trials=1000)
    where = tmp_path / node_of(tmp_path, job)
    began = time.monotonic()
    server.client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
    assert server.wait(job)["status"] == "canceled" and time.monotonic() - began < 10
    count = len(evaluated(where)[job])
    time.sleep(3 * TRIAL_S)
    assert len(evaluated(where)[job]) == count


def test_a_server_that_stops_gives_its_jobs_back_and_one_that_dies_loses_none(server: Server, tmp_path: Path) -> None:
    job = server.submit(server.model(), trials=TRIALS)
    wait_until(lambda: len(server.trials(job)) > 2, "some trials")
    server.end()
    server.start()
    wait_until(lambda: server.job(job)["attempt"] == 2 and len(server.trials(job)) > 6, "the second attempt")
    server.end(signal.SIGKILL)
    server.start()
    done = server.wait(job)
    assert (done["status"], done["attempt"]) == ("succeeded", 3)
    begun = [number for name in ("a", "b") for found in evaluated(tmp_path / name).values() for number in found]
    assert set(begun) == set(range(TRIALS)) and len(begun) <= TRIALS + 2, "at most the trials in flight twice"


def test_without_places_jobs_wait_and_health_says_for_what(
    postgres: Postgres, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.announce(monkeypatch)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    server = Server(
        tmp_path / "server",
        VITFIT_DATABASE_URL=postgres.fresh(),
        VITFIT_STORAGE_URL=s3.fresh(),
        VITFIT_RAY=cluster.address,
        VITFIT_RAY_JOBS="true",
    )
    try:
        server.start()
        job = server.submit(server.model(), trials=2)
        waits = wait_until(lambda: server.client.get("/healthz").json()["waits"], "the reason")
        assert "vitfit_jobs" in waits and "ray start" in waits
        cluster.add_node(num_cpus=0, resources={"vitfit_jobs": 1}, env_vars={"VITFIT_DATA": str(tmp_path / "a")})
        assert server.wait(job)["status"] == "succeeded"
        assert wait_until(lambda: server.client.get("/healthz").json()["waits"] is None, "the reason to go")
    finally:
        server.end()
        ray.shutdown()
        cluster.shutdown()
