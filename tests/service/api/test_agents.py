"""Tests of agents over HTTP: who may register, what the server offers, and which samples the server takes."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from latency.devices.mailbox import Mailbox
from service.api.context import Service
from tests.support.rest import problem

AGENT: dict[str, Any] = {
    "name": "pi-5",
    "protocol": 1,
    "version": "0.1.0",
    "machine": "Cortex-A76",
    "threads": 4,
    "runtime": "onnxruntime 1.22.0",
    "providers": ["CPUExecutionProvider"],
}
REQUEST: dict[str, Any] = {
    "threads": 1,
    "batch": 1,
    "provider": "CPUExecutionProvider",
    "seconds": 1.0,
    "rounds": 3,
    "seed": 0,
}
GOOD = {"samples_ms": [[[1.0, 1.1]] * 3, [[0.5, 0.6]] * 3]}


@pytest.fixture
def service(web: TestClient) -> Service:
    found: Service = web.app.state.service  # type: ignore[attr-defined]
    return found


@pytest.fixture
def bearer(service: Service) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.tokens.create('pi', ('agent',))[1]}"}


@pytest.fixture
def agent(web: TestClient, bearer: dict[str, str]) -> dict[str, str]:
    """The headers of an agent that has registered."""
    answer = web.post("/v1/agents", json=AGENT, headers=bearer)
    assert answer.status_code == 201, answer.text
    assert answer.json()["device"] == "agent-pi-5"
    return {**bearer, "Vitfit-Session": answer.json()["session"]}


@pytest.fixture
def mailbox(service: Service, agent: dict[str, str]) -> Mailbox:
    return Mailbox(service.folder.devices / "agent-pi-5")


def post_task(mailbox: Mailbox, tmp_path: Path) -> str:
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        file.write_bytes(file.name.encode() * 100)
    return mailbox.post(REQUEST, files, None)


def test_without_the_right_token_nobody_is_an_agent(web: TestClient, service: Service, agent: dict[str, str]) -> None:
    reader = {"Authorization": f"Bearer {service.tokens.create('reader', ('read',))[1]}"}
    for method, path in (("POST", ""), ("GET", "/agent-pi-5/task"), ("POST", "/agent-pi-5/tasks/1")):
        for headers, status, code in (
            ({}, 401, "unauthorized"),
            ({"Authorization": "Bearer vft_guessed"}, 401, "unauthorized"),
            (reader, 403, "forbidden"),
        ):
            session = {"Vitfit-Session": agent["Vitfit-Session"]}
            answer = web.request(
                method, f"/v1/agents{path}", json=AGENT if not path else GOOD, headers=headers | session
            )
            problem(answer, status, code)
            assert status != 401 or answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_revoked_token_is_of_no_use(web: TestClient, service: Service, agent: dict[str, str]) -> None:
    (token,) = service.tokens.all()
    service.tokens.revoke(token.id)
    problem(web.get("/v1/agents/agent-pi-5/task?wait_s=0", headers=agent), 401, "unauthorized")


def test_the_device_is_listed_while_its_agent_is_heard_of(web: TestClient, mailbox: Mailbox) -> None:
    device = web.get("/v1/devices/agent-pi-5").json()
    assert (device["kind"], device["reachable"], device["threads"]) == ("agent", True, 4)
    assert device["machine"] == "Cortex-A76" and device["tables"] == []
    (mailbox._folder / "seen").unlink()
    assert web.get("/v1/devices/agent-pi-5").json()["reachable"] is False


def test_a_task_with_its_files_goes_out_and_samples_come_back(
    web: TestClient, agent: dict[str, str], mailbox: Mailbox, tmp_path: Path
) -> None:
    assert web.get("/v1/agents/agent-pi-5/task?wait_s=0", headers=agent).status_code == 204
    number = post_task(mailbox, tmp_path)
    task = web.get("/v1/agents/agent-pi-5/task", headers=agent).json()
    assert task["id"] == number and {name: task[name] for name in REQUEST} == REQUEST
    for entry in task["files"]:
        content = web.get(f"/v1/agents/agent-pi-5/tasks/{number}/files/{entry['sha256']}", headers=agent).content
        assert hashlib.sha256(content).hexdigest() == entry["sha256"] and len(content) == entry["bytes"]
    assert mailbox.answer(number) is None
    assert web.post(f"/v1/agents/agent-pi-5/tasks/{number}", json=GOOD, headers=agent).status_code == 204
    assert mailbox.answer(number) == GOOD
    assert web.get("/v1/agents/agent-pi-5/task?wait_s=0", headers=agent).status_code == 204


def test_only_files_of_the_task_are_given_out(
    web: TestClient, agent: dict[str, str], mailbox: Mailbox, tmp_path: Path
) -> None:
    number = post_task(mailbox, tmp_path)
    for name in ("request.json", "0" * 64, "..%2Frequest.json"):
        answer = web.get(f"/v1/agents/agent-pi-5/tasks/{number}/files/{name}", headers=agent)
        assert answer.status_code == 404


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ([[[1.0]] * 3], "the number of files is 1, but the task has 2"),
        ([[[1.0]] * 2] * 2, "one file has 2 rounds"),
        ([[[1.0]] * 3, [[1.0]] * 4], "the same number of rounds, at least 3"),
        ([[[1.0]] * 3, [[1.0], [], [1.0]]], "a round has no runs"),
        ([[[1.0]] * 3, [[1.0], [1.0, 2.0], [1.0]]], "different numbers of runs"),
        ([[[1.0]] * 3, [[1.0], [-1.0], [1.0]]], "-1.0 ms"),
        ([[[1.0]] * 3, [[1.0], [0.0], [1.0]]], "0.0 ms"),
    ],
)
def test_samples_that_cannot_be_are_refused_and_the_job_is_told(
    web: TestClient, agent: dict[str, str], mailbox: Mailbox, tmp_path: Path, samples: Any, text: str
) -> None:
    number = post_task(mailbox, tmp_path)
    answer = web.post(f"/v1/agents/agent-pi-5/tasks/{number}", json={"samples_ms": samples}, headers=agent)
    assert text in problem(answer, 422, "invalid-request")["detail"]
    told = mailbox.answer(number)
    assert told is not None and text in told["refused"]


def test_nan_is_no_sample(web: TestClient, agent: dict[str, str], mailbox: Mailbox, tmp_path: Path) -> None:
    number = post_task(mailbox, tmp_path)
    body = '{"samples_ms": [[[1.0], [NaN], [1.0]], [[1.0], [1.0], [1.0]]]}'
    headers = {**agent, "Content-Type": "application/json"}
    answer = web.post(f"/v1/agents/agent-pi-5/tasks/{number}", content=body, headers=headers)
    problem(answer, 422, "invalid-request")
    assert "samples_ms" not in (mailbox.answer(number) or {})


def test_an_agent_that_registers_takes_over_and_the_one_before_is_told(
    web: TestClient, agent: dict[str, str], bearer: dict[str, str], mailbox: Mailbox, tmp_path: Path
) -> None:
    number = post_task(mailbox, tmp_path)
    second = web.post("/v1/agents", json=AGENT, headers=bearer).json()["session"]
    problem(web.get("/v1/agents/agent-pi-5/task?wait_s=0", headers=agent), 409, "conflict")
    problem(web.post(f"/v1/agents/agent-pi-5/tasks/{number}", json=GOOD, headers=agent), 409, "conflict")
    task = web.get("/v1/agents/agent-pi-5/task", headers={**bearer, "Vitfit-Session": second}).json()
    assert task["id"] == number, "what the first had not answered is offered again"


def test_a_device_belongs_to_the_token_that_made_it(
    web: TestClient, agent: dict[str, str], service: Service, bearer: dict[str, str]
) -> None:
    """Another agent would get the models and images of all jobs on this device."""
    eve = {"Authorization": f"Bearer {service.tokens.create('eve', ('agent',))[1]}"}
    refused = problem(web.post("/v1/agents", json=AGENT, headers=eve), 409, "conflict")
    assert "another access token" in refused["detail"]
    assert web.get("/v1/agents/agent-pi-5/task?wait_s=0", headers=agent).status_code == 204
    assert web.post("/v1/agents", json=AGENT, headers=bearer).status_code == 201
    listed = web.get("/v1/devices").json()["devices"]
    assert "owner" not in next(device for device in listed if device["name"] == "agent-pi-5")


def test_the_list_of_agents_is_bounded(
    web: TestClient, bearer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.agents.MOST_AGENTS", 2)
    answers = [web.post("/v1/agents", json={**AGENT, "name": f"pi-{n}"}, headers=bearer) for n in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 409]
    long = {**AGENT, "providers": ["x" * 101]}
    problem(web.post("/v1/agents", json=long, headers=bearer), 422, "invalid-request")


def test_one_token_does_not_take_the_places_of_all(web: TestClient, service: Service, bearer: dict[str, str]) -> None:
    service.agents._most_of_one = 2
    other = {"Authorization": f"Bearer {service.tokens.create('ann', ('agent',))[1]}"}
    for number in range(2):
        assert web.post("/v1/agents", json={**AGENT, "name": f"pi-{number}"}, headers=bearer).status_code == 201
    refused = problem(web.post("/v1/agents", json={**AGENT, "name": "pi-2"}, headers=bearer), 409, "conflict")
    assert refused["allowed"] == 2 and "VITFIT_MOST_AGENTS" in refused["detail"]
    assert web.post("/v1/agents", json={**AGENT, "name": "pi-1"}, headers=bearer).status_code == 201, "known already"
    assert web.post("/v1/agents", json={**AGENT, "name": "ann"}, headers=other).status_code == 201
    assert web.delete("/v1/devices/agent-pi-0").status_code == 204
    assert web.post("/v1/agents", json={**AGENT, "name": "pi-2"}, headers=bearer).status_code == 201


def test_a_session_that_is_no_session_is_refused(web: TestClient, agent: dict[str, str]) -> None:
    others = [(name.encode(), value.encode()) for name, value in agent.items() if name != "Vitfit-Session"]
    headers = [*others, (b"Vitfit-Session", b"\xe9")]
    problem(web.get("/v1/agents/agent-pi-5/task?wait_s=0", headers=headers), 409, "conflict")


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"protocol": 0}, 409, "protocol 0"),
        ({"machine": "Cortex-A55"}, 409, "Cortex-A76"),
        ({"runtime": "onnxruntime 1.23.0"}, 409, "delete-device agent-pi-5"),
        ({"name": "../../etc"}, 422, "lower-case letters"),
        ({"name": ""}, 422, "lower-case letters"),
        ({"colour": "blue"}, 422, "colour"),
        ({"threads": 0}, 422, "threads"),
    ],
)
def test_what_an_agent_says_of_itself_is_checked(
    web: TestClient, agent: dict[str, str], bearer: dict[str, str], change: dict[str, Any], status: int, text: str
) -> None:
    answer = web.post("/v1/agents", json={**AGENT, **change}, headers=bearer)
    assert text in problem(answer, status, {409: "conflict", 422: "invalid-request"}[status])["detail"]


def test_a_deleted_device_takes_its_agent_along(web: TestClient, agent: dict[str, str], mailbox: Mailbox) -> None:
    assert web.delete("/v1/devices/agent-pi-5").status_code == 204
    problem(web.get("/v1/agents/agent-pi-5/task?wait_s=0", headers=agent), 404, "not-found")
    assert not mailbox._folder.exists()
