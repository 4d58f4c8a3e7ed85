"""Tests of a table that was measured on another machine.

`vitfit measure` writes the table. A server checks it and adds it as a device. Only jobs on the same network may use it.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from latency.devices.host import ADDED
from latency.devices.profile_schema import parse_profile
from models.errors import InvalidRequest
from service.pipeline.measured_table import measured_table
from tests.support.rest import problem
from tests.support.small_jobs import OPTIONS, Workshop, briefly, budget, model_folder


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = {
        "name": "vit_tiny_patch16_224",
        "options": OPTIONS,
        "pretrained": False,
        "preprocessing": None,
        "classes": None,
    }
    with briefly():
        found = measured_table(model, None, "user-pi", 1, batch=1)
    loaded: dict[str, Any] = json.loads(json.dumps(found))
    return loaded


@pytest.fixture
def workshop_there(
    workshop: Workshop, document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Workshop:
    """A workshop that knows the device."""
    (tmp_path / "user-pi.json").write_text(json.dumps(document))
    monkeypatch.setenv(ADDED, str(tmp_path))
    return workshop


def test_a_server_takes_what_measure_wrote(web: TestClient, document: dict[str, Any]) -> None:
    answer = web.post("/v1/devices", json=document)
    assert answer.status_code == 201, answer.text
    assert answer.json()["network"] == "vit_tiny_patch16_224"
    assert web.get("/v1/devices/user-pi").json()["description"] == document["description"]


@pytest.mark.usefixtures("brief")
def test_a_job_is_priced_by_the_table(workshop_there: Workshop) -> None:
    ran = workshop_there.run(budget("latency_keep", 0.8, "user-pi"), trials=2)
    assert ran.result.guarantee == "predicted"
    assert ran.report["budgets"][0]["share"] <= 1
    assert ran.report["delivered"]["macs"] < ran.report["original"]["macs"]


@pytest.mark.usefixtures("brief")
def test_another_network_is_refused_by_name(workshop_there: Workshop, tmp_path: Path) -> None:
    other = Workshop(tmp_path, model_folder(tmp_path / "other", depth=2), workshop_there.dataset)
    with pytest.raises(InvalidRequest, match="is for vit_tiny_patch16_224"):
        other.run(budget("latency_keep", 0.8, "user-pi"), trials=1)
    with pytest.raises(InvalidRequest, match="batch size 4"):
        workshop_there.run(budget("latency_keep", 0.8, "user-pi", batch=4), trials=1)


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(document))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = copy
    for part in parents:
        place = place[part]
    place[last] = value
    return dict(copy)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("original_ms", -1.0, "original_ms"),
        ("original_ms", math.nan, "original_ms"),
        ("samples.0.ratio.value", math.nan, "ratio"),
        ("samples.0.ratio.low", 99.0, "low <= value"),
        ("samples", [], "samples"),
        ("units", {"original_ms": "seconds"}, "milliseconds per run"),
        ("original", {"name": "x"}, "original is not the structure"),
        ("samples.1.structure", {}, "samples.1.structure is not the structure"),
        ("colour", "blue", "colour"),
    ],
)
def test_a_damaged_table_is_refused_with_its_field(document: dict[str, Any], path: str, value: Any, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        parse_profile(changed(document, path, value))


def test_a_table_that_is_not_monotone_is_normal(document: dict[str, Any]) -> None:
    odd = {"value": 1.2, "low": 1.1, "high": 1.3}
    assert parse_profile(changed(document, "samples.0.ratio", odd)).name == "user-pi"


def test_a_name_of_ours_is_refused(web: TestClient, document: dict[str, Any]) -> None:
    problem(web.post("/v1/devices", json={**document, "name": "pi"}), 422, "invalid-request")
