"""Tests with a full disk.

Nothing is lost, and every user gets the reason. The server still answers. When there is room again, all jobs continue.
"""

import contextlib
import errno
import http.client
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from safetensors import SafetensorError
from sqlalchemy import event
from vitfit.child import ChildFailed

from models.errors import BadData, DamagedFile, DeviceUnavailable
from models.export.torch_program import save_program
from models.training.loop import _save
from service.app import create_app
from service.core.disk_space import is_full
from service.core.settings import Settings
from tests.support.rest import create_model, problem, zip_bytes
from tests.support.running import Server, job_body, wait_until

SIZE = 16 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system for the test."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def server(disk: Path) -> Iterator[Server]:
    server = Server(disk / "data", VITFIT_FAKE_TRIAL_S="0.15", VITFIT_LEASE_S="600", VITFIT_KEEP_FREE_BYTES="1000000")
    yield server.start()
    server.end()


def fill(disk: Path) -> Path:
    """Fill the disk with one file, and return the file."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_job_waits_for_disk_and_goes_on_from_its_last_finished_trial(server: Server, disk: Path) -> None:
    model = server.model()
    job, queued = server.submit(model, trials=8), server.submit(model, trials=1)
    finished = server.wait_for_trials(job, 2)
    ballast = fill(disk)
    waits = wait_until(lambda: server.client.get("/healthz").json()["waits"], "the server to say that jobs wait")
    assert "0 bytes free, and 1,000,000 bytes must stay free for running jobs" in waits and "make room" in waits
    assert server.job(job)["status"] in ("running", "queued") and server.job(queued)["status"] == "queued"
    assert set(server.trials(job)) >= set(finished)
    refused = server.client.post("/v1/jobs", json=job_body(model))
    assert (refused.status_code, refused.json()["type"]) == (507, "/problems/storage-full")
    ballast.unlink()
    done = server.wait(job)
    assert (done["status"], done["error"]) == ("succeeded", None)
    assert server.trials(job) == list(range(8))
    begun = [number for number, _ in server.evaluated(job)]
    assert all(begun.count(number) == 1 for number in finished)
    assert server.wait(queued)["status"] == "succeeded" and server.client.get("/healthz").json()["waits"] is None
    assert len(server.client.get(f"/v1/jobs/{job}/artifacts/model.onnx").content) == 256 * 400


def test_an_upload_that_fills_the_disk_is_refused_leaves_nothing_and_can_be_sent_again(
    server: Server, disk: Path
) -> None:
    def pieces() -> Iterator[bytes]:
        """Yield the body in pieces. The request announces no length, so the server begins to read it."""
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.npz"\r\n\r\n'
        for _ in range(2 * SIZE // 2**16):
            yield bytes(2**16)
        yield b"\r\n--B--\r\n"

    url = server.client.base_url
    client = http.client.HTTPConnection(url.host, url.port)  # this client sends everything before it reads an answer
    client.request("POST", "/v1/datasets", pieces(), {"Content-Type": "multipart/form-data; boundary=B"})
    answer = client.getresponse()
    body = json.loads(answer.read())
    assert (answer.status, body["type"]) == (507, "/problems/storage-full")
    assert "free_bytes" in body and "make room" in body["detail"]
    assert [path for path in (disk / "data" / "uploads").rglob("*") if path.is_file()] == []
    assert server.client.get("/v1/datasets").json()["datasets"] == []
    assert server.client.post("/v1/datasets", files={"file": ("a.npz", zip_bytes())}).status_code == 201


def test_an_upload_that_cannot_fit_is_refused_before_it_is_sent(server: Server) -> None:
    body: dict[str, Any] = {"content": b"x" * SIZE, "headers": {"Content-Type": "multipart/form-data; boundary=B"}}
    answer = server.client.post("/v1/datasets", **body)
    assert (answer.status_code, answer.json()["needed_bytes"]) == (507, SIZE)


def test_jobs_can_be_deleted_and_read_on_a_full_disk(server: Server, disk: Path) -> None:
    job = server.submit(server.model(), trials=2)
    server.wait(job)
    ballast = fill(disk)
    assert server.job(job)["status"] == "succeeded"
    assert server.client.get(f"/v1/jobs/{job}/artifacts/model.onnx").status_code == 200
    deleted = server.client.delete(f"/v1/jobs/{job}")
    assert deleted.status_code in (204, 507), deleted.text
    if deleted.status_code == 507:  # the database had no free page, so the job is unchanged
        assert server.client.get(f"/v1/jobs/{job}/artifacts/model.onnx").status_code == 200
        ballast.unlink()
        assert server.client.delete(f"/v1/jobs/{job}").status_code == 204
    assert not (server.data / "jobs" / job).exists()


@pytest.fixture
def no_room(tmp_path: Path) -> Iterator[Server]:
    """A server whose jobs find no room for their model.onnx."""
    server = Server(tmp_path / "data", VITFIT_FAKE_TRIAL_S="0.3", VITFIT_LEASE_S="600").start()
    yield server
    server.end()


def without_room(server: Server) -> tuple[str, Path]:
    """Start a job, and return it with the file that it will not be able to write."""
    job = server.submit(server.model(), trials=3)
    server.wait_for_trials(job, 1)
    wall = server.data / "jobs" / job / "work" / "model.onnx.tmp"
    wall.symlink_to("/dev/full")
    return job, wall


def test_a_job_that_finds_no_room_again_and_again_fails_with_the_reason(no_room: Server) -> None:
    job, _ = without_room(no_room)
    failed = no_room.wait(job)
    assert (failed["status"], failed["attempt"], failed["error"]["type"]) == ("failed", 3, "/problems/storage-full")
    assert "finished trials are kept" in failed["error"]["detail"] and failed["error"]["free_bytes"] > 0
    assert no_room.trials(job) == [0, 1, 2]
    assert no_room.client.get(f"/v1/jobs/{job}/artifacts").json()["artifacts"] == [], "no half of a file"
    child = no_room.client.post(f"/v1/jobs/{job}/deliver", json={"trial": 2}).json()["id"]
    assert no_room.wait(child)["status"] == "succeeded"


def test_a_job_that_finds_room_later_ends_well(no_room: Server) -> None:
    job, wall = without_room(no_room)
    wait_until(lambda: no_room.job(job)["attempt"] == 2 or not wall.is_symlink(), "the second attempt")
    wall.unlink()
    done = no_room.wait(job)
    assert (done["status"], done["attempt"]) in (("succeeded", 2), ("succeeded", 3))
    assert [number for number, _ in no_room.evaluated(job)] == [0, 1, 2]


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(data=tmp_path / "data", engine="fake")), "http://127.0.0.1") as web:
        yield web


def test_a_database_without_room_refuses_what_is_new_and_can_be_read(sqlite: TestClient) -> None:
    web = sqlite
    model = create_model(web)
    engine = web.app.state.service.store.engine  # type: ignore[attr-defined]

    def no_more_pages(connection: object, *_: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # type: ignore[attr-defined]  # SQLite takes its present size

    event.listen(engine, "checkout", no_more_pages)
    bodies = (job_body(model, name="x" * 100, trials=number) for number in range(1, 100))
    answers = (web.post("/v1/jobs", json=body) for body in bodies)
    answer = next(answer for answer in answers if answer.status_code != 202)  # some jobs fit into half-empty pages
    refused = problem(answer, 507, "storage-full")
    assert "Nothing was stored or changed" in refused["detail"] and refused["free_bytes"] > 0
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert web.get("/v1/jobs").status_code == 200
    event.remove(engine, "checkout", no_more_pages)
    event.listen(engine, "checkout", lambda connection, *_: connection.execute("PRAGMA max_page_count=1000000"))
    assert web.post("/v1/jobs", json=job_body(model)).status_code == 202


def test_with_less_disk_than_is_kept_free_nothing_new_is_taken_and_nothing_is_started(tmp_path: Path) -> None:
    little = Settings(data=tmp_path / "data", engine="fake", keep_free_bytes=10**18)
    with TestClient(create_app(little), "http://127.0.0.1", raise_server_exceptions=False) as web:
        body = problem(web.post("/v1/models", json={"name": "fake_tiny_patch4_32"}), 507, "storage-full")
        assert body["keep_free_bytes"] == 10**18 and body["free_bytes"] > 0
        waits = wait_until(lambda: web.get("/healthz").json()["waits"], "the runner to see it")
        assert "must stay free for running jobs" in waits


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as found:
        return found


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (NO_SPACE, True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (raised(DamagedFile("The archive is damaged."), NO_SPACE), True),
        (raised(DeviceUnavailable("failed"), ChildFailed("OSError: [Errno 28] No space left on device")), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError("1000000 requested and 524256 written"), True),
        (DamagedFile("The archive is damaged."), False),
        (raised(BadData("no"), OSError(errno.EACCES, os.strerror(errno.EACCES))), False),
    ],
)
def test_a_full_disk_is_recognised_behind_any_error(error: Exception, full: bool) -> None:
    assert is_full(error) is full


def save_checkpoint(path: Path) -> None:
    layer = torch.nn.Linear(300, 300)
    _save(path, layer, torch.optim.SGD(layer.parameters()), 1)


@pytest.mark.parametrize(
    ("save", "beside"),
    [
        (save_checkpoint, ".x.pt2.0.part"),
        (lambda path: save_program(torch.nn.Conv2d(3, 300, 3), (3, 8, 8), path), ".x.pt2.0.part"),
        (lambda path: np.save(path.with_suffix(".part"), np.zeros(100_000)), "x.part.npy"),
    ],
)
def test_what_cannot_be_written_is_an_error_and_not_the_end_of_the_process(
    tmp_path: Path, save: Callable[[Path], None], beside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.atomic_write.secrets.token_hex", lambda length: "0")
    (tmp_path / beside).symlink_to("/dev/full")
    with pytest.raises((OSError, RuntimeError)) as caught:
        save(tmp_path / "x.pt2")
    assert is_full(caught.value) and not (tmp_path / "x.pt2").exists()
