"""Tests of what strangers can do with connections, and of a machine that is short of means."""

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.core.processes import start_child
from service.core.settings import Settings
from service.jobs import runner
from service.middleware import connections
from service.middleware.connections import LimitedConnection
from tests.support.rest import create_model
from tests.support.running import job_body, wait_until

HEADERS_S, ANSWER_S, MOST = 0.4, 1.2, 5


async def _slow(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer after longer than the headers of a request may take."""
    if scope["path"] == "/slow":
        await asyncio.sleep(ANSWER_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(connections, "HEADERS_S", HEADERS_S)
    monkeypatch.setattr(connections, "MOST", MOST)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(_slow, http=LimitedConnection, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the server to start")
    yield listener.getsockname()
    server.should_exit = True
    thread.join(10)


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def ask(address: tuple[str, int], path: str = "/") -> str:
    return httpx.get(f"http://127.0.0.1:{address[1]}{path}", timeout=20).text


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET"])
def test_a_connection_that_sends_no_whole_request_is_closed(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def test_a_second_request_must_not_dawdle_either(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"ok"):
            answer += connection.recv(1000)
        connection.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.05)
        assert is_closed(connection)


def test_an_answer_may_take_longer(address: tuple[str, int]) -> None:
    assert ask(address, "/slow") == "ok"


def test_idle_connections_make_room_for_people(address: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4 * MOST):
            stack.enter_context(socket.create_connection(address))
        assert ask(address) == "ok"


def test_a_shortage_is_not_a_crash_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors no worker starts. The job waits, and goes on when there are some."""
    short = threading.Event()
    short.set()

    def scarce(*given: object, **more: object) -> object:
        if short.is_set():
            raise OSError(errno.EMFILE, "Too many open files")
        return start_child(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "start_child", scarce)
    monkeypatch.setattr(runner, "SHORT_S", 0.1)
    settings = Settings(data=tmp_path / "data", engine="fake")
    with TestClient(create_app(settings), "http://127.0.0.1") as web:
        job = web.post("/v1/jobs", json=job_body(create_model(web), trials=2)).json()["id"]
        waits = wait_until(lambda: web.get("/healthz").json()["waits"], "the runner to see it")
        assert "Too many open files" in waits and "/" not in waits
        time.sleep(0.5)  # several attempts: more than a job has
        assert web.get(f"/v1/jobs/{job}").json()["status"] == "queued"
        short.clear()
        done = wait_until(
            lambda: (found := web.get(f"/v1/jobs/{job}").json())["status"] in ("succeeded", "failed") and found,
            "the job to end",
        )
        assert done["status"] == "succeeded"
