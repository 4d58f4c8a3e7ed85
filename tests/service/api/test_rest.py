"""Tests of lists, names, errors and health, with the application in this process."""

import errno
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.core.errors import STATUS, status_of
from service.db.tables import ModelRow, Store, now
from service.jobs.job_store import NewJob
from service.middleware.problems import add_handlers
from tests.service.conftest import DESCRIPTION, new_job
from tests.support.rest import create_model, problem
from tests.support.running import job_body, wait_until


def test_lists_come_in_pages_newest_first(web: TestClient, store_of_web: Store) -> None:
    with store_of_web.write() as session:
        rows = [
            ModelRow(id=f"mdl_{n}", owner="", name="m", description=DESCRIPTION, created_at=now()) for n in range(5)
        ]
        rows[1].created_at = rows[2].created_at  # for equal times, the order follows the id
        session.add_all(rows)
    found: list[str] = []
    sizes = []
    query: dict[str, Any] = {"page_size": 2}
    while True:
        page = web.get("/v1/models", params=query).json()
        sizes.append(len(page["models"]))
        found += [model["id"] for model in page["models"]]
        if page["next_page_token"] is None:
            break
        query["page_token"] = page["next_page_token"]
    assert (found, sizes) == ([f"mdl_{n}" for n in (4, 3, 2, 1, 0)], [2, 2, 1])


def test_a_page_token_is_taken_by_its_own_list_only(web: TestClient, store_of_web: Store) -> None:
    with store_of_web.write() as session:
        session.add(ModelRow(id="mdl_a", owner="", name="m", description=DESCRIPTION))
        session.flush()
        for _ in range(2):
            row = new_job().row()
            row.status = "failed"
            session.add(row)
    token = web.get("/v1/jobs", params={"page_size": 1}).json()["next_page_token"]
    assert len(web.get("/v1/jobs", params={"page_token": token}).json()["jobs"]) == 1
    for bad in ("x", token[:-4], "é", "bnVsbA=="):
        problem(web.get("/v1/jobs", params={"page_token": bad}), 400, "bad-page-token")
    problem(web.get("/v1/models", params={"page_token": token}), 400, "bad-page-token")
    problem(web.get("/v1/jobs", params={"page_token": token, "status": "failed"}), 400, "bad-page-token")
    problem(web.get("/v1/jobs", params={"page_size": 0}), 422, "invalid-request")
    assert "queued" in problem(web.get("/v1/jobs", params={"status": "lost"}), 422, "invalid-request")["detail"]
    assert len(web.get("/v1/jobs", params={"status": "failed"}).json()["jobs"]) == 2
    assert web.get("/v1/jobs", params={"status": "running"}).json()["jobs"] == []


def test_devices_and_methods(web: TestClient) -> None:
    devices = web.get("/v1/devices").json()["devices"]
    assert [device["name"] for device in devices] == ["cpu", "generic-mobile"]
    assert web.get("/v1/devices/cpu").json() == devices[0]
    assert problem(web.get("/v1/devices/cqu"), 404, "not-found")["nearest"] == ["cpu"]
    assert [method["name"] for method in web.get("/v1/methods").json()["methods"]] == ["joint", "uniform"]


@pytest.mark.parametrize(
    ("changes", "noun", "nearest"),
    [
        ({"budgets": [{"metric": "latency_ms", "limit": 5, "device": "generic-mobil"}]}, "device", "generic-mobile"),
        ({"method": "jiont"}, "method", "joint"),
        ({"criterion": "magnitud"}, "criterion", "magnitude"),
        ({"space": "papr"}, "space", "paper"),
        ({"model": "mdl_unknown"}, "model id", None),
        ({"dataset": "dat_unknown"}, "data set id", None),
    ],
)
def test_unknown_names_in_a_job_are_refused_with_the_nearest(
    web: TestClient, changes: dict[str, Any], noun: str, nearest: str | None
) -> None:
    answer = web.post("/v1/jobs", json=job_body(create_model(web)) | changes)
    found = problem(answer, 422, "unknown-name")
    assert found["noun"] == noun
    if nearest:
        assert nearest in found["nearest"] and nearest in found["detail"]
    assert web.get("/v1/jobs").json()["jobs"] == []


def test_a_criterion_that_belongs_to_another_method_is_refused(web: TestClient) -> None:
    answer = web.post("/v1/jobs", json=job_body(create_model(web), method="uniform", criterion="hsic"))
    assert problem(answer, 422, "invalid-request")["allowed"] == ["magnitude"]


def test_a_space_that_belongs_to_another_method_is_refused(web: TestClient) -> None:
    answer = web.post("/v1/jobs", json=job_body(create_model(web), method="uniform", space="paper"))
    assert problem(answer, 422, "invalid-request")["allowed"] == ["compact"]
    assert web.post("/v1/jobs", json=job_body(create_model(web), method="joint", space="paper")).status_code < 300


def test_invalid_fields_are_named_with_value_and_bound(web: TestClient) -> None:
    body = job_body("mdl_a", budgets=[{"metric": "macs_keep", "limit": 0}], trails=3)
    found = problem(web.post("/v1/jobs", json=body), 422, "invalid-request")
    errors = {item["field"]: item for item in found["errors"]}
    assert errors["budgets.0.limit"]["value"] == 0 and errors["budgets.0.limit"]["allowed"] == {"gt": 0}
    assert "trails" in errors


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("request_of", "detail"),
    [
        ({"path": "/v1/jobs"}, "The request has no body. Send a JSON object"),
        ({"path": "/v1/jobs", "content": b"{model:}", "headers": JSON}, "The text is not JSON at character 1: "),
        (
            {"path": "/v1/jobs", "content": b"[1]", "headers": JSON},
            "The body [1] is not allowed. It must be a JSON object",
        ),
        ({"path": "/v1/models", "content": b"{name:}", "headers": JSON}, "The text is not JSON: "),
        ({"path": "/v1/datasets", "json": {"path": 3}}, "path: 3 is not allowed. It must be a text in quotes."),
        ({"path": "/v1/jobs/job_1/deliver", "json": {"trial": "x"}}, 'trial: "x" is not allowed. It must be a whole'),
    ],
)
def test_a_body_that_cannot_be_read_is_explained(web: TestClient, request_of: dict[str, Any], detail: str) -> None:
    rest = {name: value for name, value in request_of.items() if name != "path"}
    found = problem(web.post(request_of["path"], **rest), 422, "invalid-request")
    assert found["detail"].startswith(detail) and len(found["errors"]) == 1


def test_a_wrong_number_in_the_address_is_explained(web: TestClient) -> None:
    found = problem(web.get("/v1/jobs", params={"page_size": 0}), 422, "invalid-request")
    assert found["detail"] == 'page_size: "0" is not allowed. It must be at least 1. Correct it.'


def test_validate_only_describes_and_creates_nothing(web: TestClient) -> None:
    answer = web.post("/v1/jobs", params={"validate_only": True}, json=job_body(create_model(web), trials=7))
    assert (answer.status_code, answer.json()["valid"]) == (200, True)
    found = answer.json()["description"]
    assert found["model"]["params"] == 1000 and found["dataset"]["images"] == 64 and found["criterion"] == "magnitude"
    assert web.get("/v1/jobs").json()["jobs"] == []


def test_the_lowest_latency_within_a_loss_needs_no_budget(web: TestClient) -> None:
    model = create_model(web)
    answer = web.post("/v1/jobs", json={"model": model, "objective": "latency", "max_loss": 0.01, "trials": 1})
    assert answer.status_code == 202, answer.text
    (limit,) = answer.json()["request"]["budgets"]
    assert (limit["metric"], limit["limit"], limit["device"]) == ("latency_keep", 1.0, "cpu")
    refused = problem(web.post("/v1/jobs", json={"model": model}), 422, "invalid-request")
    assert "objective latency" in refused["detail"]


@pytest.mark.parametrize("query", [{}, {"validate_only": True}])
def test_a_fraction_above_the_original_is_refused(web: TestClient, query: dict[str, Any]) -> None:
    model = create_model(web)
    for metric in ("macs_keep", "latency_keep", "memory_keep"):
        body = job_body(model, budgets=[{"metric": "params_keep", "limit": 1}, {"metric": metric, "limit": 1.2}])
        found = problem(web.post("/v1/jobs", params=query, json=body), 422, "invalid-request")
        assert (found["field"], found["value"]) == ("budgets.1.limit", 1.2) and "at most 1" in found["detail"]


def test_a_count_that_no_network_can_have_is_refused(web: TestClient, store_of_web: Store) -> None:
    model = create_model(web)
    with store_of_web.write() as session:
        row = session.get(ModelRow, model)
        assert row is not None
        row.description = {**row.description, "macs": 4_598_882_304, "params": 22_050_664, "image": [3, 224, 224]}
    for limit in ({"metric": "macs", "limit": 2.5}, {"metric": "macs_keep", "limit": 1e-6}):
        found = problem(web.post("/v1/jobs", json=job_body(model, budgets=[limit])), 422, "invalid-request")
        assert "4,598,882,304" in found["detail"] and "150,528" in found["detail"]
    found = problem(
        web.post("/v1/jobs", json=job_body(model, budgets=[{"metric": "params", "limit": 9}])), 422, "invalid-request"
    )
    assert (found["least"], found["original"]) == (10, 22_050_664)
    assert web.post("/v1/jobs", json=job_body(model, budgets=[{"metric": "macs", "limit": 2.5e9}])).status_code == 202


def test_a_stored_job_with_such_a_fraction_still_opens_and_can_be_delivered_from(
    web: TestClient, store_of_web: Store
) -> None:
    request = job_body(create_model(web), budgets=[{"metric": "macs_keep", "limit": 1.2}], trials=1)
    with store_of_web.write() as session:
        row = NewJob(request).row()
        session.add(row)
        name = row.id
    wait_until(lambda: web.get(f"/v1/jobs/{name}").json()["status"] in ("succeeded", "failed"), "the job")
    assert web.get(f"/v1/jobs/{name}").json()["status"] == "succeeded"
    assert web.post(f"/v1/jobs/{name}/deliver", json={"trial": 0}).status_code == 202


def test_addresses_that_do_not_exist_are_problems_too(web: TestClient) -> None:
    problem(web.get("/v2/jobs"), 404, "not-found")
    problem(web.put("/v1/jobs"), 405, "method-not-allowed")
    for path in ("/v1/jobs/job_x", "/v1/jobs/job_x/trials", "/v1/jobs/job_x/artifacts", "/v1/jobs/job_x/artifacts/a"):
        problem(web.get(path), 404, "not-found")
    problem(web.post("/v1/jobs/job_x/cancel"), 404, "not-found")
    problem(web.post("/v1/jobs/job_x/deliver", json={"trial": 0}), 404, "not-found")


def test_text_and_numbers_that_json_does_not_have_come_back_in_a_problem(web: TestClient) -> None:
    body = b'{"model": "\\ud800", "budgets": [{"metric": "macs_keep", "limit": 1e999}], "trials": NaN}'
    answer = web.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    found = {error["field"]: error["value"] for error in problem(answer, 422, "invalid-request")["errors"]}
    assert found["model"] == "\ud800" and (found["budgets.0.limit"], found["trials"]) == ("inf", "nan")


def test_health_counts_unfinished_jobs(web: TestClient) -> None:
    found = web.get("/healthz").json()
    assert found["status"] == "ok" and found["jobs"] == {"queued": 0, "running": 0, "canceling": 0}


def test_every_error_class_has_a_status_of_its_own_or_of_its_parent() -> None:
    for cls, status in STATUS.items():
        error = cls.__new__(cls)
        assert status_of(error) == status and 400 <= status < 600


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(OSError(errno.ENOSPC, "No space left"), 507, "storage-full"), (KeyError("x"), 500, "internal-error")],
)
def test_errors_that_nobody_expects_are_problems_without_their_insides(
    tmp_path: Path, error: Exception, status: int, code: str
) -> None:
    app = FastAPI()
    add_handlers(app, tmp_path)

    @app.get("/")
    def fail() -> None:
        raise error

    found = problem(TestClient(app, raise_server_exceptions=False).get("/"), status, code)
    assert "Traceback" not in found["detail"] and "/" not in found["detail"]


def test_the_server_names_its_version_and_its_lists(web: TestClient) -> None:
    info = web.get("/v1").json()
    assert info.pop("version") == version("vitfit-server")
    assert all(web.get(address).status_code == 200 for address in info.values())
