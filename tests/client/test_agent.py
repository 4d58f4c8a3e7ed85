"""Tests of `vitfit agent` as a process beside a server.

The agent measures what the server offers. It survives a restart of either side. It stops when the server refuses it.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from vitfit.agent import Agent
from vitfit.connection import Connection
from vitfit.errors import VitfitError

from latency.devices.mailbox import Mailbox
from tests.support.agents import agent, token
from tests.support.networks import small_network
from tests.support.rogue_server import Answer, rogue_server
from tests.support.running import wait_until
from tests.support.served import served

REQUEST: dict[str, Any] = {
    "threads": 1,
    "batch": 1,
    "provider": "CPUExecutionProvider",
    "seconds": 0.1,
    "rounds": 3,
    "seed": 0,
}


def answered(mailbox: Mailbox, number: str) -> dict[str, Any]:
    found: dict[str, Any] = wait_until(lambda: mailbox.answer(number), "an answer of the agent")
    return found


@pytest.mark.slow
def test_an_agent_measures_and_either_side_may_start_again(tmp_path: Path) -> None:
    data, files = tmp_path / "data", [tmp_path / "large.onnx", tmp_path / "small.onnx"]
    for file, depth in zip(files, (4, 1), strict=True):
        small_network(depth=depth).export(file, 1)
    mailbox = Mailbox(data / "devices" / "agent-pi-5")
    with served(tmp_path, "--data", str(data), "--port", "0") as address:
        port, secret = address.rpartition(":")[2], token(data, "agent")
        with agent(address, secret, tmp_path):
            wait_until(lambda: mailbox.silent_s() < 60, "the agent")
            number = mailbox.post(REQUEST, files, None)
            samples = answered(mailbox, number)["samples_ms"]
            assert [len(rounds) >= 3 for rounds in samples] == [True, True]
            large, small = (min(map(min, of_file)) for of_file in samples)
            assert large > small > 0
            mailbox.withdraw(number)
        second = mailbox.post(REQUEST, files, None)
        with agent(address, secret, tmp_path):
            assert "samples_ms" in answered(mailbox, second), "asked for while the agent was down"
    with agent(address, secret, tmp_path):
        third = mailbox.post(REQUEST, files[:1], None)
        (tmp_path / "ready").unlink()
        with served(tmp_path, "--data", str(data), "--port", port):
            assert len(answered(mailbox, third)["samples_ms"]) == 1, "the agent waited for the server"


def test_the_agent_ends_when_it_is_refused(tmp_path: Path) -> None:
    with served(tmp_path, "--data", str(tmp_path / "data"), "--port", "0") as address:
        with agent(address, token(tmp_path / "data", "read"), tmp_path) as process:
            assert process.wait(timeout=40) == 1
        assert "needs the scope agent" in (tmp_path / "agent.log").read_text()


def refused(digest: str, measuring: tuple[str, ...], cache: Path) -> str:
    """Return the reason that an agent gives for a task with one file of the content "abc"."""
    entry = {"sha256": digest, "bytes": 3}
    task = Answer.json({**REQUEST, "id": "1", "files": [entry], "images": None})
    with rogue_server(task, file=Answer(200, b"abc")) as server:
        Agent(Connection(server.url, 0, 5.0), "a", cache, measuring).run(tasks=1)
        return str(server.replies[-1]["refused"])


def test_a_file_with_another_digest_is_never_opened(tmp_path: Path) -> None:
    assert "another SHA-256" in refused("0" * 64, ("false",), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_measuring_process_that_dies_is_a_reason_and_not_the_agents_end(tmp_path: Path) -> None:
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert "the measuring process failed" in refused(digest, (sys.executable, "-m", "vitfit.measuring"), tmp_path)


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(VitfitError, match="is not an address"):
        Connection("localhost:8000", 0, 5.0)
