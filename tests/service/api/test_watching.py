"""Tests of metrics for operators, of headers for the browsers of strangers, and of limits."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.core.settings import Settings
from tests.support.rest import create_model, problem


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(data=tmp_path / "data", engine="fake", requests_per_minute=5)
    with TestClient(create_app(settings), "http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def value(web: TestClient, line: str) -> float:
    found = [text for text in web.get("/metrics").text.splitlines() if text.startswith(f"{line} ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def test_jobs_and_requests_are_counted_by_route_and_not_by_name(web: TestClient) -> None:
    model = create_model(web)
    body = {"model": model, "budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": 1}
    job = web.post("/v1/jobs", json=body).json()["id"]
    web.get(f"/v1/jobs/{job}")
    web.get("/v1/jobs/job_none")
    text = web.get("/metrics").text
    assert job not in text and "job_none" not in text
    route = 'method="GET",route="/v1/jobs/{job_id}"'
    assert value(web, f'vitfit_requests_total{{{route},status="200"}}') == 1
    assert value(web, f'vitfit_requests_total{{{route},status="404"}}') == 1
    assert value(web, f"vitfit_request_seconds_count{{{route}}}") == 2
    statuses = ("queued", "running", "succeeded")
    assert sum(value(web, f'vitfit_jobs{{status="{status}"}}') for status in statuses) == 1
    assert value(web, "vitfit_disk_free_bytes") > 0


@pytest.mark.parametrize("path", ["/healthz", "/v1/jobs", "/v1/jobs/none", "/nothing"])
def test_every_answer_tells_browsers_what_not_to_do(web: TestClient, path: str) -> None:
    headers = web.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["Referrer-Policy"] == "no-referrer"


def test_requests_beyond_the_rate_are_refused_but_health_is_not(strict: TestClient) -> None:
    answers = [strict.get("/v1/methods") for _ in range(6)]
    assert [answer.status_code for answer in answers[:5]] == [200] * 5
    problem(answers[5], 429, "too-many")
    assert "Retry-After" in answers[5].headers
    forged = strict.get("/v1/methods", headers={"Authorization": "Bearer vft_other"})
    problem(forged, 429, "too-many")  # nobody knows this token, so it counts for the address
    assert strict.get("/healthz").status_code == 200 and strict.get("/livez").status_code == 204
