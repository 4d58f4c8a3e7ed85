"""Tests of the logs of the server and of a job's worker.

The logs have one form for people and one for machines. Secrets never appear in them.
"""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.core import logs
from service.core.settings import Settings
from tests.support.agents import token
from tests.support.running import job_body, wait_until
from tests.support.served import served

ALWAYS = {"time", "level", "logger", "message"}


@contextmanager
def bare_root() -> Iterator[None]:
    """Remove pytest's handlers from the root logger, and put the logger back afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def test_server_and_job_write_one_object_per_line_with_the_ids_and_no_secret(tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = {"VITFIT_ANONYMOUS": "0", "VITFIT_LOG_FORMAT": "json"}
    with served(tmp_path, "--data", str(data), "--port", "0", **options) as address:
        secret = token(data, "submit")
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            model = client.post("/v1/models", json={"name": "fake_tiny_patch4_32"}).json()["id"]
            sent = client.post(
                "/v1/jobs", json=job_body(model, name="bug"), headers={"X-Request-ID": "from-the-client.1"}
            )
            assert sent.headers["X-Request-ID"] == "from-the-client.1"
            job = sent.json()["id"]
            wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["status"] == "failed", "the job's failure")
            looked = client.get(f"/v1/jobs?access_token={secret}")
            of_job = client.get(f"/v1/jobs/{job}/log").text.splitlines()
    of_server = (tmp_path / "server.log").read_text().splitlines()
    server = [json.loads(line) for line in of_server if not line.startswith("vitfit serves")]
    worker = [json.loads(line) for line in of_job]
    assert all(line.keys() >= ALWAYS for line in server + worker) and len(worker) >= 3
    assert {(line["job_id"], line["request_id"]) for line in worker} == {(job, "from-the-client.1")}
    assert "RuntimeError: a bug on purpose" in next(line["exception"] for line in worker if "exception" in line)
    started = next(line for line in server if line["logger"] == "vitfit.runner")
    assert (started["job_id"], started["request_id"]) == (job, "from-the-client.1")
    access = next(line for line in server if line["logger"] == "uvicorn.access" and "access_token" in line["message"])
    assert access["request_id"] == looked.headers["X-Request-ID"] and access["request_id"].startswith("req_")
    everything = "\n".join(of_server + of_job)
    assert secret not in everything and "access_token=vft_***" in everything


def test_text_is_for_people_and_says_the_ids_too() -> None:
    stream = io.StringIO()
    with bare_root():
        logs.set_up("text", stream)
        with logs.about(job_id="job_1", request_id=None):
            logging.getLogger("vitfit.test").warning("%s: vft_abc-DEF_1 is out", "job_1")
        logging.getLogger("vitfit.test").info("nothing in particular")
    first, second = stream.getvalue().splitlines()
    assert "job_1: vft_*** is out" in first and "job_id=job_1" in first and "warning" in first
    assert "job_id" not in second and "request_id" not in first


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "line\tbreak", "ü", "{}"])
def test_an_id_that_is_not_sane_is_replaced(web: TestClient, given: str) -> None:
    answer = web.get("/healthz", headers=[(b"X-Request-ID", given.encode())])
    assert answer.headers["X-Request-ID"].startswith("req_")


def test_an_error_that_nobody_expects_can_be_found_by_its_id(tmp_path: Path) -> None:
    app = create_app(Settings(data=tmp_path / "data", engine="fake"))

    @app.get("/broken")
    def broken() -> Any:
        raise RuntimeError("inside")

    with TestClient(app, "http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.get("/broken", headers={"X-Request-ID": "find-me"})
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (500, "find-me")


def test_a_traceback_shows_no_values() -> None:
    """Values may be secrets of other people, and printing all of them takes seconds of the event loop."""
    stream = io.StringIO()
    with bare_root():
        logs.set_up("text", stream)
        secret = "x" * 1000  # noqa: F841  the value that must not be printed
        try:
            raise RuntimeError("inside")
        except RuntimeError:
            logging.getLogger("vitfit").exception("it failed")
    text = stream.getvalue()
    assert "RuntimeError: inside" in text and "xxx" not in text and len(text) < 1000
