"""Tests of the checks of a cluster before work starts. They need no cluster."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.errors import Canceled, InvalidRequest
from service.cluster import node
from service.cluster.dispatcher import environment
from service.cluster.ray_cluster import Cluster, check_resources
from service.core.errors import ClusterUnavailable
from service.core.settings import Settings
from service.jobs.job_request import TrialResources
from tests.support.small_jobs import job_request

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def test_a_node_that_joined_later_with_other_versions_evaluates_nothing() -> None:
    expected = {**node.versions(), "torch": "1.0.0"}
    (difference,) = node.trial(expected, [], {}, 1)
    assert difference.startswith("torch 2") and difference.endswith("instead of 1.0.0")


def test_a_cluster_that_does_not_answer_is_named_after_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray").shutdown()
    monkeypatch.setenv("VITFIT_DEVICE_PATIENCE_S", "0.1")
    with pytest.raises(ClusterUnavailable, match=r"'127\.0\.0\.1:9' \(VITFIT_RAY\) has not answered"):
        Cluster("127.0.0.1:9", TrialResources(), lambda: None)


def test_a_cancel_ends_the_wait_for_a_cluster() -> None:
    pytest.importorskip("ray").shutdown()
    with pytest.raises(Canceled):
        Cluster("127.0.0.1:9", TrialResources(), _after(2))


def _after(calls: int) -> Any:
    left = iter(range(calls))

    def check() -> None:
        if next(left, None) is None:
            raise Canceled("The job was canceled.")

    return check


def test_resources_of_a_cluster_where_there_is_none_are_refused() -> None:
    request = job_request({"metric": "macs_keep", "limit": 0.5}, trial_resources={"gpus": 1})
    with pytest.raises(InvalidRequest, match=r"trial_resources names CPU 1, GPU 1.*VITFIT_RAY"):
        check_resources(request, None)
    check_resources(request, "auto")
    check_resources(job_request({"metric": "macs_keep", "limit": 0.5}, parallel_trials=4), None)


def test_a_server_whose_jobs_run_elsewhere_offers_no_devices_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    here = Settings(data=tmp_path)
    elsewhere = Settings(
        data=tmp_path, ray="auto", ray_jobs=True, database_url="postgresql://db/vitfit", storage_url="s3://bucket"
    )
    assert "VITFIT_DEVICES" in here.worker_environment() and "VITFIT_DEVICES" not in elsewhere.worker_environment()
    told = environment(elsewhere, "10.0.0.1:6379")
    assert told["VITFIT_RAY"] == "10.0.0.1:6379" and told["VITFIT_DATABASE_URL"].startswith("postgresql://")
    assert "VITFIT_DEVICES" not in told and "VITFIT_DATA" not in told and told["AWS_ACCESS_KEY_ID"] == "key"


@pytest.mark.parametrize("missing", ["ray", "database_url", "storage_url"])
def test_jobs_on_nodes_need_a_cluster_a_database_and_a_bucket(tmp_path: Path, missing: str) -> None:
    whole = {"ray": "auto", "database_url": "postgresql://db/vitfit", "storage_url": "s3://bucket", missing: None}
    with pytest.raises(ValidationError, match=r"VITFIT_RAY.*VITFIT_DATABASE_URL.*VITFIT_STORAGE_URL"):
        Settings(data=tmp_path, ray_jobs=True, **whole)  # type: ignore[arg-type]
