"""Tests of access. Tokens have scopes. Things belong to their owner. Anonymous access needs a setting."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import URL, text

from service.app import create_app
from service.core.settings import Settings
from tests.service.conftest import on
from tests.support.rest import problem

BODY: dict[str, Any] = {"budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": 2}


@pytest.fixture
def web(tmp_path: Path, database: Path | URL) -> Iterator[TestClient]:
    settings = Settings(data=tmp_path / "data", engine="fake", anonymous=False, **on(database))
    with TestClient(create_app(settings), "http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def bearer(web: TestClient, name: str, *scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {web.app.state.service.tokens.create(name, scopes)[1]}"}  # type: ignore[attr-defined]


def operations(web: TestClient) -> list[tuple[str, str]]:
    paths = web.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, found in paths.items() for method in found if path.startswith("/v1/")]


def filled(path: str) -> str:
    """Fill a path with names that do not exist."""
    while "{" in path:
        head, _, rest = path.partition("{")
        path = f"{head}none{rest.partition('}')[2]}"
    return path


def test_every_address_asks_for_a_token(web: TestClient) -> None:
    found = operations(web)
    assert len(found) > 20
    for method, path in found:
        answer = web.request(method, filled(path))
        problem(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer", path
    assert web.get("/healthz").status_code == 200 and web.get("/livez").status_code == 204
    assert 'src="http' not in web.get("/docs").text, "the description of the API loads nothing from elsewhere"


def test_reading_does_not_allow_to_change_anything(web: TestClient) -> None:
    reader = bearer(web, "reader", "read")
    for method, path in operations(web):
        answer = web.request(method, filled(path), headers=reader)
        allowed = method == "GET" and not path.startswith("/v1/agents")
        assert (answer.status_code != 403) == allowed, (method, path, answer.text)


def test_only_an_admin_changes_what_all_share(web: TestClient) -> None:
    submitter, admin = bearer(web, "ann", "submit"), bearer(web, "root", "admin")
    for method, path in (("POST", "/v1/devices"), ("DELETE", "/v1/devices/user-none")):
        problem(web.request(method, path, json={}, headers=submitter), 403, "forbidden")
        assert web.request(method, path, json={}, headers=admin).status_code in (404, 422)


def test_other_peoples_things_are_not_there(web: TestClient) -> None:
    """The answer is 404 and not 403, because a stranger must not learn that something exists."""
    ann, bob, root = (
        bearer(web, name, scope) for name, scope in (("ann", "submit"), ("bob", "submit"), ("root", "admin"))
    )
    model = web.post("/v1/models", json={"name": "fake_tiny_patch4_32"}, headers=ann).json()["id"]
    job = web.post("/v1/jobs", json={"model": model, **BODY}, headers=ann).json()["id"]
    mine = [f"/v1/models/{model}", f"/v1/jobs/{job}", f"/v1/jobs/{job}/trials", f"/v1/jobs/{job}/artifacts"]
    for path in mine:
        assert web.get(path, headers=ann).status_code == web.get(path, headers=root).status_code == 200
        problem(web.get(path, headers=bob), 404, "not-found")
    for method, path in (
        ("DELETE", mine[0]),
        ("DELETE", mine[1]),
        ("POST", f"{mine[1]}/cancel"),
        ("POST", f"{mine[1]}/deliver"),
    ):
        problem(web.request(method, path, json={"trial": 0}, headers=bob), 404, "not-found")
    refused = web.post("/v1/jobs", json={"model": model, **BODY}, headers=bob)
    assert model not in str(problem(refused, 422, "unknown-name").get("nearest"))
    for listing, noun in (("/v1/jobs", "jobs"), ("/v1/models", "models")):
        assert web.get(listing, headers=bob).json()[noun] == []
        assert len(web.get(listing, headers=ann).json()[noun]) == len(web.get(listing, headers=root).json()[noun]) == 1


def test_an_idempotency_key_belongs_to_its_owner(web: TestClient) -> None:
    jobs = []
    for name in ("ann", "bob"):
        headers = {**bearer(web, name, "submit"), "Idempotency-Key": "same"}
        model = web.post("/v1/models", json={"name": "fake_tiny_patch4_32"}, headers=headers).json()["id"]
        answer = web.post("/v1/jobs", json={"model": model, **BODY}, headers=headers)
        assert answer.status_code == 202 and "Idempotency-Replayed" not in answer.headers
        jobs.append(answer.json()["id"])
    assert jobs[0] != jobs[1]


def test_two_tokens_of_one_person_see_the_same(web: TestClient) -> None:
    first, second = bearer(web, "ann", "submit"), bearer(web, "ann", "read")
    model = web.post("/v1/models", json={"name": "fake_tiny_patch4_32"}, headers=first).json()["id"]
    assert web.get(f"/v1/models/{model}", headers=second).status_code == 200


def test_secrets_are_not_in_the_database(web: TestClient) -> None:
    secret = bearer(web, "ann", "read")["Authorization"].partition(" ")[2]
    with web.app.state.service.store.read() as session:  # type: ignore[attr-defined]
        (row,) = session.execute(text("select * from tokens")).all()
    assert secret not in str(row) and secret.removeprefix("vft_") not in str(row)


def test_an_open_door_to_other_machines_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitfit.cli", "serve", "--data", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run([*command, "--anonymous"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "vitfit token create" in done.stderr


def vitfit(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitfit.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def test_a_folder_that_no_server_has_used_gets_no_token(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, words in (("typo", "does not exist"), ("empty", "has no vitfit.sqlite")):
        folder = tmp_path / name
        for verb in (("create", "ann", "--scope", "submit"), ("list",), ("revoke", "tok_1")):
            done = vitfit("token", *verb, "--data", str(folder))
            assert done.returncode == 1 and f"{folder} {words}" in done.stderr
            assert f"vitfit serve --data {folder}" in done.stderr
    done = vitfit("token", "create", "ann", "--scope", "submit", VITFIT_DATA=str(tmp_path / "other"))
    assert done.returncode == 1 and f"{tmp_path / 'other'} does not exist" in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    with TestClient(create_app(Settings(data=tmp_path / "data", engine="fake"))):
        pass  # a server that has run once
    secret = vitfit("token", "create", "ann", "--scope", "submit", *data).stdout.strip()
    assert secret.startswith("vft_") and len(secret) > 40
    listed = vitfit("token", "list", *data).stdout
    assert "ann" in listed and secret not in listed
    number = next(word for word in listed.split() if word.startswith("tok_"))
    assert vitfit("token", "revoke", number, *data).returncode == 0
    refused = vitfit("token", "create", "ann", "--scope", "everything", *data)
    assert refused.returncode == 1 and "read, submit, agent, admin" in refused.stderr
    assert vitfit("token", "revoke", "tok_none", *data).returncode == 1
