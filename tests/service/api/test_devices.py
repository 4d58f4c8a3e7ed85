"""Tests of devices that users add.

The server checks a device before it stores it, and lists it with its own devices. Jobs can use the device. The server
keeps it while a job needs it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from latency.devices.devices import PROFILES
from tests.support.rest import create_model, problem
from tests.support.running import wait_until

PROFILE: dict[str, Any] = {**json.loads((PROFILES / "generic-mobile.json").read_text()), "name": "user-phone"}


def test_an_added_device_is_listed_and_described(web: TestClient) -> None:
    answer = web.post("/v1/devices", json=PROFILE)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == "/v1/devices/user-phone"
    described = web.get("/v1/devices/user-phone").json()
    assert described == answer.json()
    assert described["kind"] == "profile" and described["error"] is None
    assert "user-phone" in {device["name"] for device in web.get("/v1/devices").json()["devices"]}


def test_a_device_keeps_its_meaning(web: TestClient) -> None:
    """A second profile with the same name would change the meaning of earlier results."""
    web.post("/v1/devices", json=PROFILE)
    problem(web.post("/v1/devices", json={**PROFILE, "lanes": 8}), 409, "conflict")
    assert web.delete("/v1/devices/user-phone").status_code == 204
    assert web.post("/v1/devices", json={**PROFILE, "lanes": 8}).status_code == 201


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peak_macs_per_s": -1}, "peak_macs_per_s"),
        ({"units": {}}, "units.peak_macs_per_s"),
        ({"colour": "blue"}, "colour"),
        ({"name": "generic-phone"}, "must begin with 'user-'"),
        ({"name": "user-../../etc"}, "name"),
    ],
)
def test_a_damaged_profile_is_refused(web: TestClient, change: dict[str, Any], text: str) -> None:
    body = problem(web.post("/v1/devices", json={**PROFILE, **change}), 422, "invalid-request")
    assert text in body["detail"]
    assert "user-phone" not in {device["name"] for device in web.get("/v1/devices").json()["devices"]}


def test_what_ships_stays_and_what_is_unknown_is_named(web: TestClient) -> None:
    devices = [device["name"] for device in web.get("/v1/devices").json()["devices"]]
    problem(web.delete(f"/v1/devices/{devices[0]}"), 409, "conflict")
    problem(web.delete("/v1/devices/user-none"), 404, "not-found")


def test_a_device_that_a_job_waits_for_stays(web: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITFIT_FAKE_TRIAL_S", "30")
    web.post("/v1/devices", json=PROFILE)
    budget = {"metric": "latency_ms", "limit": 5, "device": "user-phone", "setting": {"threads": 1}}
    answer = web.post("/v1/jobs", json={"model": create_model(web), "budgets": [budget]})
    assert answer.status_code == 202, answer.text
    job = str(answer.json()["id"])
    body = problem(web.delete("/v1/devices/user-phone"), 409, "conflict")
    assert job in body["detail"]
    web.post(f"/v1/jobs/{job}/cancel")
    wait_until(lambda: web.get(f"/v1/jobs/{job}").json()["status"] == "canceled", "the end of the job")
    assert web.delete("/v1/devices/user-phone").status_code == 204


def test_nothing_unfinished_is_left_in_the_folder(web: TestClient, tmp_path: Path) -> None:
    web.post("/v1/devices", json=PROFILE)
    web.post("/v1/devices", json=PROFILE)
    assert not list(tmp_path.rglob("*.part"))
