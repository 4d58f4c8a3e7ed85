"""The REST interface in this process: models, data sets, paging, names, errors, OpenAPI."""

import errno
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.errors import STATUS, status_of
from service.paths import DataFolder
from service.problems import add_handlers
from service.settings import Settings
from service.store import ModelRow, Store, now
from tests.service.conftest import new_job
from tests.service.running import job_body, wait_until

PROBLEM = "application/problem+json"


@pytest.fixture
def store_of_web(web: TestClient, tmp_path: Path) -> Iterator[Store]:
    """The database of `web`."""
    store = Store(DataFolder(tmp_path / "data").database)
    yield store
    store.close()


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", b"0" * 1000)
    return buffer.getvalue()


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The body of an error, after a check of its shape."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["type"], body["status"]) == (status, f"/problems/{code}", status), body
    assert answer.headers["content-type"] == PROBLEM
    assert body["title"] and body["detail"]
    return body


def create_model(web: TestClient, name: str = "fake_tiny_patch4_32") -> str:
    answer = web.post("/v1/models", json={"name": name, "options": {"num_classes": 10}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_model_is_created_listed_read_and_deleted(web: TestClient, tmp_path: Path) -> None:
    answer = web.post("/v1/models", json={"name": "fake_tiny_patch4_32", "options": {"num_classes": 10}})
    model = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/v1/models/{model['id']}")
    assert model["id"].startswith("mdl_") and model["description"]["tokens"] == 65
    stored = json.loads((tmp_path / "data" / "models" / model["id"] / "model.json").read_text())
    assert stored == {
        "name": "fake_tiny_patch4_32",
        "options": {"num_classes": 10},
        "pretrained": True,
        "preprocessing": None,
        "classes": None,
    }
    assert web.get(f"/v1/models/{model['id']}").json() == model
    assert web.get("/v1/models").json() == {"models": [model], "next_page_token": None}
    assert web.delete(f"/v1/models/{model['id']}").status_code == 204
    problem(web.get(f"/v1/models/{model['id']}"), 404, "not-found")
    problem(web.delete(f"/v1/models/{model['id']}"), 404, "not-found")
    assert list((tmp_path / "data" / "models").iterdir()) == []


def test_a_checkpoint_is_stored_beside_its_configuration(web: TestClient, tmp_path: Path) -> None:
    config = {"name": "fake_tiny_patch4_32"}
    files = {"checkpoint": ("../../evil/net.SafeTensors", b"weights" * 10_000)}
    answer = web.post("/v1/models", data={"config": json.dumps(config)}, files=files)
    assert answer.status_code == 201, answer.text
    folder = tmp_path / "data" / "models" / answer.json()["id"]
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]
    assert (folder / "weights.safetensors").read_bytes() == b"weights" * 10_000
    assert json.loads((folder / "model.json").read_text())["pretrained"] is False


def test_what_the_validation_refuses_leaves_nothing_behind(web: TestClient, tmp_path: Path) -> None:
    unknown = problem(web.post("/v1/models", json={"name": "vit_of_nobody"}), 422, "unknown-name")
    assert unknown["name"] == "vit_of_nobody" and "fake_tiny_patch4_32" in unknown["detail"]
    files = {"checkpoint": ("net.pth", b"pickle")}
    answer = web.post("/v1/models", data={"config": '{"name": "fake_a"}'}, files=files)
    assert problem(answer, 422, "checkpoint-mismatch")["missing"] == ["head.weight"]
    answer = web.post("/v1/datasets", files={"file": ("digits.npz", b"not a zip")})
    problem(answer, 422, "damaged-file")
    problem(web.post("/v1/models", json={"name": "validation-dies"}), 500, "validation-broken")
    assert_nothing_left(tmp_path)


def assert_nothing_left(tmp_path: Path) -> None:
    for folder in ("uploads", "models", "datasets"):
        files = [path for path in (tmp_path / "data" / folder).rglob("*") if path.is_file()]
        assert files == [], folder


@pytest.mark.parametrize(
    ("filename", "stored", "source"),
    [("digits.npz", "data.npz", "npz"), ("a.ZIP", "data.zip", "archive"), ("x.tar.gz", "data.tar", "archive")],
)
def test_a_data_set_is_stored_under_the_name_of_its_kind(
    web: TestClient, tmp_path: Path, filename: str, stored: str, source: str
) -> None:
    content = zip_bytes()
    answer = web.post("/v1/datasets", files={"file": (filename, content)})
    assert answer.status_code == 201, answer.text
    data = answer.json()
    folder = tmp_path / "data" / "datasets" / data["id"]
    assert (folder / stored).read_bytes() == content
    assert json.loads((folder / "dataset.json").read_text()) == {"source": source, "path": None, "filename": filename}
    assert data["name"] == filename and data["description"]["images"] == 8
    assert web.get("/v1/datasets").json()["datasets"] == [data]
    assert web.delete(f"/v1/datasets/{data['id']}").status_code == 204


def test_folders_are_taken_below_allowed_roots_only(web: TestClient, tmp_path: Path) -> None:
    inside = tmp_path / "allowed" / "pictures"
    inside.mkdir()
    (inside / "a.png").touch()
    answer = web.post("/v1/datasets", json={"path": str(inside)})
    assert (answer.status_code, answer.json()["name"]) == (201, "pictures")
    assert web.delete(f"/v1/datasets/{answer.json()['id']}").status_code == 204
    assert (inside / "a.png").exists()
    (tmp_path / "allowed" / "link").symlink_to("/etc")
    for path in ("/etc", str(inside / "../../data"), str(tmp_path / "allowed" / "link"), "relative", "nul\0"):
        refused = problem(web.post("/v1/datasets", json={"path": path}), 422, "invalid-request")
        assert refused["allowed"] == [str(tmp_path / "allowed")]
    problem(web.post("/v1/datasets", json={"path": str(tmp_path / "allowed" / "none")}), 422, "invalid-request")


def test_a_job_may_use_a_folder_that_the_server_was_told_to_allow(web: TestClient, tmp_path: Path) -> None:
    (tmp_path / "allowed" / "a.png").touch()
    dataset = web.post("/v1/datasets", json={"path": str(tmp_path / "allowed")}).json()["id"]
    answer = web.post("/v1/jobs", json=job_body(create_model(web), dataset=dataset, trials=1))
    assert answer.status_code == 202, answer.text
    path = answer.headers["location"]
    wait_until(lambda: web.get(path).json()["status"] in ("succeeded", "failed"), "the job")
    assert (web.get(path).json()["status"], web.get(path).json()["error"]) == ("succeeded", None)


def test_uploads_that_are_too_large_are_refused_and_leave_nothing(web: TestClient, tmp_path: Path) -> None:
    large = {"file": ("large.npz", b"x" * 400_000)}
    assert problem(web.post("/v1/datasets", files=large), 413, "too-large")["limit_bytes"] == 300_000
    problem(web.post("/v1/jobs", json={"model": "x" * 2_000_000}), 413, "too-large")
    answer = web.post("/v1/models", data={"config": "x" * 290_000}, files={"checkpoint": ("a.pth", b"x")})
    problem(answer, 413, "too-large")
    assert_nothing_left(tmp_path)


def multipart(*parts: bytes, end: bytes = b"--B--\r\n") -> dict[str, Any]:
    body = b"".join(b"--B\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    return {"content": body + end, "headers": {"Content-Type": "multipart/form-data; boundary=B"}}


FILE = b'name="file"; filename="a.npz"\r\n\r\ncontent'


@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        (multipart(FILE, end=b""), 400, "malformed-upload"),
        (multipart(FILE, end=b"--B"), 400, "malformed-upload"),
        (multipart(FILE, FILE), 400, "malformed-upload"),
        (multipart(b'name="other"\r\n\r\nx'), 400, "malformed-upload"),
        (multipart(), 422, "invalid-request"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "malformed-upload"),
        (
            {"content": b"garbage" * 10, "headers": {"Content-Type": "multipart/form-data; boundary=B"}},
            400,
            "malformed-upload",
        ),
        (multipart(b'name="file"; filename="a.exe"\r\n\r\nx'), 422, "invalid-request"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "wrong-media-type"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 422, "invalid-request"),
        ({"json": {"path": "/x", "extra": 1}}, 422, "invalid-request"),
    ],
)
def test_malformed_uploads_are_refused_and_leave_nothing(
    web: TestClient, tmp_path: Path, request_body: dict[str, Any], status: int, code: str
) -> None:
    problem(web.post("/v1/datasets", **request_body), status, code)
    assert_nothing_left(tmp_path)


def test_lists_come_in_pages_newest_first(web: TestClient, store_of_web: Store) -> None:
    with store_of_web.write() as session:
        rows = [ModelRow(id=f"mdl_{n}", owner="", name="m", description={}, created_at=now()) for n in range(5)]
        rows[1].created_at = rows[2].created_at  # equal times are told apart by the id
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
        session.add(ModelRow(id="mdl_a", owner="", name="m", description={}))
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


def test_invalid_fields_are_named_with_value_and_bound(web: TestClient) -> None:
    body = job_body("mdl_a", budgets=[{"metric": "macs_keep", "limit": 0}], trails=3)
    found = problem(web.post("/v1/jobs", json=body), 422, "invalid-request")
    errors = {item["field"]: item for item in found["errors"]}
    assert errors["budgets.0.limit"]["value"] == 0 and errors["budgets.0.limit"]["allowed"] == {"gt": 0}
    assert "trails" in errors


def test_validate_only_describes_and_creates_nothing(web: TestClient) -> None:
    answer = web.post("/v1/jobs", params={"validate_only": True}, json=job_body(create_model(web), trials=7))
    assert (answer.status_code, answer.json()) == (200, {"valid": True, "description": {"trials": 7}})
    assert web.get("/v1/jobs").json()["jobs"] == []


def test_a_job_whose_validation_takes_too_long_is_queued_and_an_upload_is_not_kept(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", engine="fake", validate_timeout_s=0.5)
    with TestClient(create_app(settings)) as web:
        model = create_model(web)
        undecided = web.post("/v1/jobs", params={"validate_only": True}, json=job_body(model, name="slow"))
        assert undecided.json() == {"valid": None, "description": None}
        accepted = web.post("/v1/jobs", json=job_body(model, name="slow"))
        assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")
    with TestClient(create_app(settings.model_copy(update={"register_timeout_s": 0.5}))) as web:
        answer = web.post("/v1/datasets", files={"file": ("slow.npz", zip_bytes())})
        problem(answer, 503, "validation-slow")
        assert answer.headers["retry-after"] == "5"
    assert list((tmp_path / "data" / "datasets").iterdir()) == []


def test_addresses_that_do_not_exist_are_problems_too(web: TestClient) -> None:
    problem(web.get("/v2/jobs"), 404, "not-found")
    problem(web.put("/v1/jobs"), 405, "method-not-allowed")
    for path in ("/v1/jobs/job_x", "/v1/jobs/job_x/trials", "/v1/jobs/job_x/artifacts", "/v1/jobs/job_x/artifacts/a"):
        problem(web.get(path), 404, "not-found")
    problem(web.post("/v1/jobs/job_x/cancel"), 404, "not-found")
    problem(web.post("/v1/jobs/job_x/deliver", json={"trial": 0}), 404, "not-found")


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
    error: Exception, status: int, code: str
) -> None:
    app = FastAPI()
    add_handlers(app)

    @app.get("/")
    def fail() -> None:
        raise error

    found = problem(TestClient(app, raise_server_exceptions=False).get("/"), status, code)
    assert "Traceback" not in found["detail"] and "/" not in found["detail"]


def operations(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, found) for path, item in schema["paths"].items() for method, found in item.items()]


def test_openapi_has_examples_for_all_bodies_and_problems_for_all_errors(web: TestClient) -> None:
    schema = web.get("/openapi.json").json()
    bodies = 0
    for path, method, operation in operations(schema):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            bodies += 1
            kind = media["schema"].get("$ref", "").rpartition("/")[2]
            assert "example" in media or "examples" in media or "example" in schema["components"]["schemas"][kind], path
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                assert list(answer["content"]) == [PROBLEM], (path, method, status)
        assert operation["responses"].keys() & {"200", "201", "202", "204"}, (path, method)
        assert operation["summary"] and operation["description"], (path, method)
    assert bodies == 6


def test_openapi_refers_only_to_schemas_that_it_has(web: TestClient) -> None:
    text = web.get("/openapi.json").text
    known = json.loads(text)["components"]["schemas"]
    for reference in {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in known


def test_openapi_lists_the_whole_interface(web: TestClient) -> None:
    schema = web.get("/openapi.json").json()
    assert {f"{method.upper()} {path}" for path, method, _ in operations(schema)} == {
        *("POST /v1/models", "GET /v1/models", "GET /v1/models/{model_id}", "DELETE /v1/models/{model_id}"),
        *("POST /v1/datasets", "GET /v1/datasets", "GET /v1/datasets/{dataset_id}", "DELETE /v1/datasets/{dataset_id}"),
        *("POST /v1/jobs", "GET /v1/jobs", "GET /v1/jobs/{job_id}", "DELETE /v1/jobs/{job_id}"),
        *("POST /v1/jobs/{job_id}/cancel", "GET /v1/jobs/{job_id}/trials", "POST /v1/jobs/{job_id}/deliver"),
        *("GET /v1/jobs/{job_id}/artifacts", "GET /v1/jobs/{job_id}/artifacts/{name}"),
        *("GET /v1/devices", "GET /v1/devices/{name}", "GET /v1/methods", "GET /healthz"),
    }
