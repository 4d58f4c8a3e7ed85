"""Tests of retention.

The server deletes old jobs. A full data folder takes nothing new. The server sweeps away folders that no job owns.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.core.data_folder import DataFolder
from service.core.settings import Settings
from service.db.tables import JobRow, Store, now
from service.jobs.job_store import Jobs
from service.jobs.leases import Leases
from service.library.retention import Retention
from service.storage.local_folder import LocalStorage
from tests.service.conftest import new_job
from tests.support.rest import problem


def ended(store: Store, job_id: str, days_ago: float) -> None:
    with store.write() as session:
        row = session.get(JobRow, job_id)
        assert row is not None
        row.status, row.finished_at = "succeeded", now() - timedelta(days=days_ago)


def test_finished_jobs_go_after_their_time_with_trials_and_files(
    store: Store, jobs: Jobs, leases: Leases, folder: DataFolder
) -> None:
    old, young, waiting = (jobs.create(new_job()).id for _ in range(3))
    lease = leases.claim("me")
    assert lease is not None and lease.job_id == old
    leases.record(lease, {"number": 0})
    for job in (old, young, waiting):
        folder.job(job).create()
    ended(store, old, 31)
    ended(store, young, 29)
    assert Retention(store, folder, LocalStorage(folder), None, quota_bytes=None).sweep() == []
    assert Retention(store, folder, LocalStorage(folder), 30, quota_bytes=None).sweep() == [old]
    assert {path.name for path in folder.jobs.iterdir()} == {young, waiting}
    assert jobs.trial_numbers(old) == []
    assert jobs.get(young).status == "succeeded" and jobs.get(waiting).status == "queued"


def test_what_a_deleted_job_left_is_swept_and_what_nobody_knows_stays(
    store: Store, jobs: Jobs, folder: DataFolder
) -> None:
    """A server died after it deleted the row of a job and before it deleted the folder."""
    mine, gone = (jobs.create(new_job()).id for _ in range(2))
    for job in (mine, gone, "job_of_nobody"):
        folder.job(job).create()
    ended(store, gone, 1)
    jobs.delete(gone)
    for _ in range(2):  # the second folder is that of another machine, which sweeps later
        folder.job(gone).create()
        Retention(store, folder, LocalStorage(folder), None, quota_bytes=None).sweep()
        assert {path.name for path in folder.jobs.iterdir()} == {mine, "job_of_nobody"}


@pytest.fixture
def full(tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(data=tmp_path / "data", engine="fake", quota_bytes=1000)
    with TestClient(create_app(settings), "http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def test_a_full_folder_takes_nothing_new_and_can_be_read_and_emptied(full: TestClient) -> None:
    body = problem(full.post("/v1/models", json={"name": "fake_tiny_patch4_32"}), 507, "storage-full")
    assert body["quota_bytes"] == 1000 and body["used_bytes"] > 1000
    problem(full.post("/v1/datasets", files={"file": ("a.npz", b"x")}), 507, "storage-full")
    budget = {"metric": "macs_keep", "limit": 0.5}
    problem(full.post("/v1/jobs", json={"model": "mdl_a", "budgets": [budget]}), 507, "storage-full")
    assert full.get("/v1/jobs").status_code == 200 and full.get("/healthz").status_code == 200
