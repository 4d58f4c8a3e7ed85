"""Tests of jobs that meet limits, defects and changed files: the job fails with the reason, and names no path."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rest import zip_bytes
from tests.support.running import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose jobs have little memory, and fail at their first crash."""
    little = {"VITFIT_JOB_MEMORY_BYTES": str(2**32), "VITFIT_JOB_CPU_S": "600"}
    server = Server(tmp_path_factory.mktemp("hostile") / "data", VITFIT_MAX_CRASHES="1", **little)
    yield server.start()
    server.end()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("greedy", "memory limit of a job, 4,295 MB. Use a smaller model or less data, or ask the operator to raise"),
        ("busy", "limit on processor time of a job, 600 s"),
    ],
)
def test_a_job_that_reaches_a_limit_fails_with_the_limit_and_its_setting(server: Server, name: str, words: str) -> None:
    job = server.wait(server.submit(server.model(), name=name))
    assert (job["status"], job["error"]["type"]) == ("failed", "/problems/limit-reached")
    assert words in job["error"]["detail"] and "VITFIT_JOB_" in job["error"]["detail"]


def test_a_defect_is_told_without_paths_and_without_values_of_variables(server: Server) -> None:
    job_id = server.submit(server.model(), name="bug")
    job = server.wait(job_id)
    text = server.client.get(f"/v1/jobs/{job_id}/log").text
    assert "a bug on purpose in model.onnx" in job["error"]["detail"]
    assert (
        "Traceback" in text
        and 'File "service/jobs/fake_engine.py"' in text
        and "a bug on purpose in model.onnx" in text
    )
    assert str(server.data) not in json.dumps(job) + text and str(Path(__file__).parents[3]) not in text
    assert "macs_keep" not in text, "the request is a local variable"


@pytest.mark.parametrize("what", ["model", "data set", "digests"])
def test_a_file_that_was_swapped_on_the_disk_is_not_used(server: Server, what: str) -> None:
    model = server.model()
    answer = server.client.post("/v1/datasets", files={"file": ("images.zip", zip_bytes())})
    dataset = str(answer.json()["id"])
    swapped = server.data / (f"datasets/{dataset}/data.zip" if what == "data set" else f"models/{model}/model.json")
    if what == "digests":
        swapped = swapped.with_name("digests.json")
    content = swapped.read_bytes()
    swapped.write_bytes(content[:-1] if what == "digests" else content + b" ")
    job = server.wait(server.submit(model, dataset=dataset))
    assert (job["status"], job["error"]["type"]) == ("failed", "/problems/damaged-file")
    noun = "model" if what == "digests" else what
    assert f"Upload the {noun} again" in job["error"]["detail"] and str(server.data) not in job["error"]["detail"]
