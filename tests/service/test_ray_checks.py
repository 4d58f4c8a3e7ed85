"""What is said of a cluster before work starts, without one."""

import os
from typing import Any

import pytest

from models.errors import Canceled, InvalidRequest
from service import node
from service.cluster import Cluster, check_resources
from service.errors import ClusterUnavailable
from service.request import TrialResources
from tests.service.small_jobs import job_request

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
