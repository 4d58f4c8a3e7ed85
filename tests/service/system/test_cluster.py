"""Tests of several servers on one PostgreSQL and one bucket.

Each server has its own data folder, as if it ran on its own machine.
"""

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.postgres import Postgres
from tests.support.running import Server, wait_until
from tests.support.s3 import S3


@pytest.fixture
def servers(postgres: Postgres, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    """Two running servers that share a database and a bucket."""
    s3.announce(monkeypatch)
    environment = {
        "VITFIT_DATABASE_URL": postgres.fresh(),
        "VITFIT_STORAGE_URL": s3.fresh(),
        "VITFIT_FAKE_TRIAL_S": "0.1",
    }
    found = [Server(tmp_path / name, **environment) for name in ("one", "two")]
    try:
        yield [server.start() for server in found]
    finally:
        for server in found:
            server.end()


def ran(server: Server) -> set[str]:
    """Return the jobs that this server's machine has evaluated."""
    return {path.parts[-3] for path in server.data.glob("jobs/*/work/evaluated.txt")}


@pytest.mark.slow
def test_each_job_runs_once_wherever_and_its_files_are_had_from_both(servers: list[Server]) -> None:
    one, two = servers
    model, jobs = one.model(), list[str]()
    threads = [
        threading.Thread(target=lambda s=server: jobs.append(s.submit(model, trials=6))) for server in servers * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in jobs:
        done = one.wait(job)
        assert (done["status"], done["attempt"]) == ("succeeded", 1)
    assert ran(one) | ran(two) == set(jobs) and not ran(one) & ran(two)
    assert ran(one) and ran(two), "both have worked"
    for server in servers:
        for job in jobs:
            answer = server.client.get(f"/v1/jobs/{job}/artifacts/model.onnx", headers={"Range": "bytes=10-19"})
            assert (answer.status_code, answer.content) == (206, bytes(range(10, 20)))
            whole = server.client.get(f"/v1/jobs/{job}/artifacts/model.onnx")
            assert whole.headers["ETag"] == f'"{hashlib.sha256(whole.content).hexdigest()}"'
            log = f"/v1/jobs/{job}/log"
            wait_until(lambda: "stored the end of the job" in server.client.get(log).text, "the log")  # noqa: B023
    two.client.delete(f"/v1/jobs/{jobs[0]}").raise_for_status()
    assert one.client.get(f"/v1/jobs/{jobs[0]}/artifacts").status_code == 404


@pytest.mark.slow
def test_a_job_waits_for_a_bucket_that_is_away_when_it_ends(servers: list[Server], s3: S3) -> None:
    one = servers[0]
    job = one.submit(one.model(), trials=10)
    one.wait_for_trials(job, 8)
    s3.stop()
    time.sleep(5)
    assert one.job(job)["status"] == "running"
    answer = one.client.get(f"/v1/jobs/{job}/artifacts")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/storage-away")
    s3.start()
    done = one.wait(job)
    assert (done["status"], done["attempt"]) == ("succeeded", 1)
    stored = {file["name"] for file in one.client.get(f"/v1/jobs/{job}/artifacts").json()["artifacts"]}
    assert {"model.onnx", "report.html", "report.json"} <= stored


def test_with_links_files_come_from_the_bucket(
    postgres: Postgres, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.announce(monkeypatch)
    server = Server(tmp_path / "data", VITFIT_STORAGE_URL=s3.fresh(), VITFIT_DOWNLOADS="link").start()
    try:
        job = server.submit(server.model(), trials=1)
        server.wait(job)
        answer = server.client.get(f"/v1/jobs/{job}/artifacts/model.onnx")
        assert answer.status_code == 307 and answer.headers["Location"].startswith(s3.url)
        assert httpx.get(answer.headers["Location"]).content == bytes(range(256)) * 400
    finally:
        server.end()


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("VITFIT_DATABASE_URL", "nowhere", 'database "nowhere" does not exist'),
        ("VITFIT_STORAGE_URL", "s3://nowhere", "There is no bucket for s3://nowhere"),
        ("VITFIT_STORAGE_URL", "ftp://nowhere", "storage_url"),
    ],
)
def test_what_is_missing_stops_the_start_with_one_line(
    postgres: Postgres,
    s3: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    complaint: str,
) -> None:
    s3.announce(monkeypatch)
    monkeypatch.setenv(variable, postgres.url(value) if value == "nowhere" else value)
    command = [sys.executable, "-m", "service.serve", "--data", str(tmp_path), "--port", "0", "--engine", "fake"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and complaint in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
