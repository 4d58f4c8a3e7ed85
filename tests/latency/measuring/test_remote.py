"""Tests of measuring through a mailbox. One device answers, one refuses, and one does not come back."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from latency.devices.devices import machine_of
from latency.devices.host import ADDED, PATIENCE
from latency.devices.mailbox import ABANDONED_S, Mailbox
from latency.devices.setting import Setting
from latency.measuring.meter import Effort
from latency.measuring.remote import RemoteMeter, meter_of
from models.errors import DeviceUnavailable, UnknownName
from tests.support.running import wait_until

DEVICE = {"name": "agent-a", "kind": "agent", "machine": "Cortex-A76", "threads": 2, "runtime": "onnxruntime 1.22.0"}
EFFORT = Effort(seconds=0.2, processes=2, rounds=3, width=10.0)


@pytest.fixture
def mailbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    monkeypatch.setenv(ADDED, str(tmp_path))
    (tmp_path / "agent-a.json").write_text(json.dumps(DEVICE))
    mailbox = Mailbox(tmp_path / "agent-a")
    mailbox.open_session()
    return mailbox


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name in ("original", "small"):
        (tmp_path / f"{name}.onnx").write_text(name)
    return [tmp_path / "original.onnx", tmp_path / "small.onnx"]


@contextmanager
def answering(mailbox: Mailbox, answer: dict[str, Any], seen: list[dict[str, Any]] | None = None) -> Iterator[None]:
    """Answer every task with `answer`."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.02):
            mailbox.heard()
            task = mailbox.oldest()
            if task is not None:
                if seen is not None:
                    seen.append(task.request)
                mailbox.reply(task.id, answer)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    done.set()
    thread.join()


def test_samples_of_every_process_come_back(mailbox: Mailbox, files: list[Path]) -> None:
    seen: list[dict[str, Any]] = []
    with answering(mailbox, {"samples_ms": [[[2.0]] * 3, [[1.0]] * 3]}, seen):
        original, small = meter_of("agent-a", Setting(threads=2)).measure(files, EFFORT)
    assert (original.p50_ms.value, small.p50_ms.value) == (2.0, 1.0)
    assert original.device == "agent-a" and original.machine == machine_of("agent-a") == "Cortex-A76"
    assert len(small.samples_ms) == len(seen) == EFFORT.processes
    assert [request["seed"] for request in seen] == [0, 1] and seen[0]["threads"] == 2
    assert mailbox.oldest() is None and not list((mailbox._folder / "tasks").iterdir())


def test_a_refusal_is_the_jobs_error(mailbox: Mailbox, files: list[Path]) -> None:
    with (
        answering(mailbox, {"refused": "no such provider"}),
        pytest.raises(DeviceUnavailable, match="no such provider"),
    ):
        RemoteMeter("agent-a", Setting()).measure(files, EFFORT)


def test_a_lost_device_is_waited_for_and_then_named(
    mailbox: Mailbox, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE, "0.5")
    began = time.monotonic()
    with pytest.raises(DeviceUnavailable, match="agent-a has been silent") as error:
        RemoteMeter("agent-a", Setting()).measure(files, EFFORT)
    assert time.monotonic() - began > 0.4 and "vitfit agent" in error.value.detail
    assert mailbox.oldest() is None, "nobody waits for it any more"


def measuring(files: list[Path]) -> tuple[threading.Thread, list[Any]]:
    """Start a thread that waits for the agent. Return the thread and the list that will hold the measurements."""
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.extend(RemoteMeter("agent-a", Setting()).measure(files, EFFORT)))
    waiting.start()
    return waiting, found


def test_a_device_that_comes_back_in_time_is_no_error(
    mailbox: Mailbox, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE, "30")
    waiting, found = measuring(files)
    time.sleep(0.5)
    assert not found
    with answering(mailbox, {"samples_ms": [[[2.0]] * 3, [[1.0]] * 3]}):
        waiting.join()
    assert len(found) == 2


def test_a_clock_that_jumps_loses_neither_the_device_nor_the_task(
    mailbox: Mailbox, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the new time of day, the agent has been silent for hours and the task was abandoned hours ago."""
    monkeypatch.setenv(PATIENCE, "30")
    waiting, found = measuring(files)
    thrown_away = wait_until(mailbox.oldest, "the task").id
    hours_ago = time.time() - 3 * 3600
    os.utime(mailbox._folder / "seen", (hours_ago, hours_ago))
    mailbox.withdraw(thrown_away)
    again = wait_until(mailbox.oldest, "the task, posted again")
    assert again.id != thrown_away and again.request["seed"] == 0
    with answering(mailbox, {"samples_ms": [[[2.0]] * 3, [[1.0]] * 3]}):
        waiting.join()
    assert len(found) == 2 and mailbox.oldest() is None


def test_what_nobody_waits_for_is_thrown_away(mailbox: Mailbox, files: list[Path]) -> None:
    """A job that was killed leaves its task behind. Check that the mailbox deletes such a task."""
    first, second = (mailbox.post({"rounds": 1}, files, None) for _ in range(2))
    (path,) = mailbox._folder.glob(f"tasks/{first}/request.json")
    old = time.time() - ABANDONED_S - 1
    os.utime(path, (old, old))
    task = mailbox.oldest()
    assert task is not None and task.id == second and not path.exists()


def test_an_unknown_device_is_named(mailbox: Mailbox) -> None:
    with pytest.raises(UnknownName, match="agent-b"):
        meter_of("agent-b", Setting())
