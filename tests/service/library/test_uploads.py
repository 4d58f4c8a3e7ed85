"""Tests of uploads of models and data sets, as JSON, as multipart and as folders.

A refused upload leaves nothing behind.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.core.settings import Settings
from tests.support.rest import create_model, problem, zip_bytes
from tests.support.running import job_body, wait_until


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
        "weights": None,
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
    assert sorted(path.name for path in folder.iterdir()) == ["digests.json", "model.json", "weights.safetensors"]
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
    problem(web.post("/v1/models", json={"name": "validation-dies"}), 413, "limit-reached")
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


def test_a_job_whose_validation_takes_too_long_is_queued_and_an_upload_is_not_kept(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", engine="fake", validate_timeout_s=0.5)
    with TestClient(create_app(settings), "http://127.0.0.1") as web:
        model = create_model(web)
        undecided = web.post("/v1/jobs", params={"validate_only": True}, json=job_body(model, name="slow"))
        said = undecided.json()
        assert (said["valid"], said["description"]) == (None, None)
        assert "did not check the job within 0.5 s" in said["reason"] and "VITFIT_VALIDATE_TIMEOUT_S" in said["reason"]
        for wrong in ({"threads": 64}, {"device": "generic-mobile", "threads": 2}):
            device = wrong.get("device", "cpu")
            limit = {"metric": "latency_keep", "limit": 0.6, "device": device, "setting": {"threads": wrong["threads"]}}
            for query in ({}, {"validate_only": True}):
                body = job_body(model, name="slow", budgets=[limit])
                assert "Set threads to" in web.post("/v1/jobs", params=query, json=body).json()["detail"]
        accepted = web.post("/v1/jobs", json=job_body(model, name="slow"))
        assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")
    with TestClient(create_app(settings.model_copy(update={"register_timeout_s": 0.5})), "http://127.0.0.1") as web:
        answer = web.post("/v1/datasets", files={"file": ("slow.npz", zip_bytes())})
        assert "did not check the data set" in problem(answer, 503, "validation-slow")["detail"]
        assert answer.headers["retry-after"] == "5"
    assert list((tmp_path / "data" / "datasets").iterdir()) == []


def test_uploads_that_do_not_tell_their_length_fill_no_more_than_the_quota(tmp_path: Path) -> None:
    """Eight uploads in pieces of 700 kB, of which at most two fit."""
    settings = Settings(data=tmp_path / "data", engine="fake", quota_bytes=2_000_000)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.tar"\r\n\r\n'

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(7):
            yield bytes(100_000)
        yield b"\r\n--b--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    with TestClient(create_app(settings), "http://127.0.0.1", raise_server_exceptions=False) as web:
        answers = [web.post("/v1/datasets", content=pieces(), headers=kind) for _ in range(8)]
        codes = [answer.status_code for answer in answers]
        assert codes[0] == 201 and codes[-1] == 507 and codes.count(201) <= 2
        problem(answers[-1], 507, "storage-full")
    kept = sum(path.stat().st_size for path in (tmp_path / "data" / "datasets").rglob("*"))
    assert kept < 2_000_000
    assert [path for path in (tmp_path / "data" / "uploads").rglob("*") if path.is_file()] == []
