"""Tests of docs/api.md.

Every address of the interface has an example, and every example does what the document says.
"""

import json
import re
import threading
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from latency.devices.mailbox import Mailbox
from service.core.processes import ROOT
from tests.support.agents import token
from tests.support.examples import Answer, Example, differences, examples
from tests.support.running import wait_until
from tests.support.served import served

TASK = {"threads": 1, "batch": 1, "provider": "CPUExecutionProvider", "seconds": 1.0, "rounds": 1, "seed": 0}
NAMES = {"/v1/models": "MODEL", "/v1/datasets": "DATASET", "/v1/jobs": "JOB", "/deliver": "CHILD"}
"""The variable that holds the id from an answer to POST, for the examples that follow."""


def test_every_address_has_an_example(web: TestClient) -> None:
    schema = web.get("/openapi.json").json()
    described = {(method.upper(), path) for path, item in schema["paths"].items() for method in item}
    found = {(example.method, operation) for example in examples() if (operation := _operation(example, described))}
    assert described - found == set(), "no example in docs/api.md"


def _operation(example: Example, described: set[tuple[str, str]]) -> str | None:
    """Return the described path that this example calls.

    If several paths fit, return the one with the fewest parameters.
    """
    fits = [
        path
        for method, path in described
        if method == example.method and re.fullmatch(re.sub(r"\{\w+\}", r"[^/]+", path), example.path)
    ]
    return min(fits, key=lambda path: path.count("{"), default=None)


@pytest.mark.parametrize("engine", ["fake", pytest.param("pipeline", marks=pytest.mark.slow)])
def test_every_example_does_what_it_says(tmp_path: Path, engine: str) -> None:
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "latency").symlink_to(ROOT / "latency")
    data = tmp_path / "data"
    with served(tmp_path, "--data", str(data), "--port", "0", VITFIT_ENGINE=engine) as address:
        variables = {"S": address, "AGENT_TOKEN": token(data, "agent")}
        for example in examples():
            if example.path.endswith("/task"):
                _ask_for_a_measurement(data, tmp_path)
            answer = example.run(variables, tmp_path)
            assert not differences(example.answer, answer), (example.command, differences(example.answer, answer))
            variables |= _named(example, answer)
            if example.path.endswith("/cancel"):
                _wait_for_the_end(variables, tmp_path)


def _ask_for_a_measurement(data: Path, folder: Path) -> None:
    """Post a task, as a job does when it wants a measurement on that device.

    The thread keeps the task alive, because it looks for the answer again and again.
    """
    file = folder / "asked.onnx"
    file.write_bytes(b"measure me" * 100)
    mailbox = Mailbox(data / "devices" / "agent-pi-5")
    task = mailbox.post(TASK, [file], None)

    def wait() -> None:
        while mailbox.answer(task) is None:
            time.sleep(0.05)

    threading.Thread(target=wait, daemon=True).start()


def _named(example: Example, answer: Answer) -> dict[str, str]:
    """Return the variables that this answer gives to the examples that follow."""
    if not answer.body.startswith("{"):
        return {}
    body = json.loads(answer.body)
    if "session" in body:
        return {"SESSION": body["session"]}
    if example.path.endswith("/task"):
        return {"TASK": body["id"], "SHA256": body["files"][0]["sha256"]}
    if example.method == "POST" and "id" in body:
        return {name: body["id"] for ending, name in NAMES.items() if example.path.endswith(ending)}
    return {}


def _wait_for_the_end(variables: dict[str, str], folder: Path) -> None:
    """Wait for the end of the child job. Before that, the server does not delete the job's model."""
    look = Example("curl $S/v1/jobs/$CHILD", Answer(200, {}, ""))
    wait_until(
        lambda: json.loads(look.run(variables, folder).body)["status"] in ("canceled", "succeeded"),
        "the child job's end",
    )


def test_a_changed_answer_is_noticed() -> None:
    said = Answer(
        200,
        {"location": "/v1/jobs/job_..."},
        '{"id": "job_...", "request": {"...": "..."}, "trials": [{"score": 1.0}]}',
    )
    good = Answer(
        200, {"location": "/v1/jobs/job_1"}, '{"id": "job_1", "request": {"model": 1}, "trials": [{"score": -2}]}'
    )
    assert differences(said, good) == []
    for changed in (
        Answer(201, good.headers, good.body),
        Answer(200, {}, good.body),
        Answer(200, good.headers, good.body.replace('"job_1"', "7")),
        Answer(200, good.headers, good.body.replace("score", "value")),
        Answer(200, good.headers, good.body.replace('"id"', '"more": 1, "id"')),
    ):
        assert len(differences(said, changed)) >= 1, changed
