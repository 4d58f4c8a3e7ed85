"""Tests of the OpenAPI description: it is complete, has examples and contains no contradiction."""

import json
from typing import Any

from fastapi.testclient import TestClient

from tests.support.rest import PROBLEM


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
    assert bodies == 9


def test_openapi_refers_only_to_schemas_that_it_has(web: TestClient) -> None:
    text = web.get("/openapi.json").text
    known = json.loads(text)["components"]["schemas"]
    for reference in {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in known


def test_links_lead_from_what_was_made_to_all_that_can_be_done_with_it(web: TestClient) -> None:
    schema = web.get("/openapi.json").json()
    names = {operation["operationId"]: (method, path) for path, method, operation in operations(schema)}
    followed = set()
    for path, method, operation in operations(schema):
        for answer in operation["responses"].values():
            for link in answer.get("links", {}).values():
                target = names[link["operationId"]]
                followed.add(target)
                known = {p["name"] for p in schema["paths"][target[1]][target[0]].get("parameters", [])}
                assert set(link.get("parameters", {})) <= known, (method, path, target)
                assert known >= {part.strip("{}") for part in target[1].split("/") if part.startswith("{")}
    made = {
        (method, path) for path, method, _ in operations(schema) if "{" in path and not path.startswith("/v1/agents")
    }
    assert made <= followed


def test_the_body_of_a_link_is_taken(web: TestClient) -> None:
    model = web.post("/v1/models", json={"name": "deit_small_patch16_224", "pretrained": True}).json()["id"]
    schema = web.get("/openapi.json").json()
    links = schema["paths"]["/v1/models"]["post"]["responses"]["201"]["links"]
    (body,) = [link["requestBody"] for link in links.values() if "requestBody" in link]
    assert body["model"] == "$response.body#/id"
    answer = web.post("/v1/jobs", json={**body, "model": model})
    assert answer.status_code == 202, answer.text


def test_openapi_lists_the_whole_interface(web: TestClient) -> None:
    schema = web.get("/openapi.json").json()
    assert {f"{method.upper()} {path}" for path, method, _ in operations(schema)} == {
        "GET /v1",
        *("POST /v1/models", "GET /v1/models", "GET /v1/models/{model_id}", "DELETE /v1/models/{model_id}"),
        *("POST /v1/datasets", "GET /v1/datasets", "GET /v1/datasets/{dataset_id}", "DELETE /v1/datasets/{dataset_id}"),
        *("POST /v1/jobs", "GET /v1/jobs", "GET /v1/jobs/{job_id}", "DELETE /v1/jobs/{job_id}"),
        *("POST /v1/jobs/{job_id}/cancel", "GET /v1/jobs/{job_id}/trials", "POST /v1/jobs/{job_id}/deliver"),
        *("GET /v1/jobs/{job_id}/artifacts", "GET /v1/jobs/{job_id}/artifacts/{name}"),
        *("GET /v1/devices", "POST /v1/devices", "GET /v1/devices/{name}", "DELETE /v1/devices/{name}"),
        *(
            "GET /v1/methods",
            "GET /metrics",
            "GET /healthz",
            "GET /livez",
            "GET /v1/jobs/{job_id}/events",
            "GET /v1/jobs/{job_id}/log",
        ),
        *("POST /v1/agents", "GET /v1/agents/{device}/task", "POST /v1/agents/{device}/tasks/{task}"),
        "GET /v1/agents/{device}/tasks/{task}/files/{sha256}",
    }
