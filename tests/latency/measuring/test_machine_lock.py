"""Tests of the machine lock.

While one process measures, other measurements wait, and other work of vitfit waits too. Nobody waits for ever.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from latency.measuring.machine_lock import measuring_lease, working
from models.errors import DeviceUnavailable
from models.throttle import paced, step
from models.training.loop import Course, train

BREATH_S = 0.3


def test_work_waits_while_somebody_measures() -> None:
    done = threading.Event()

    def work() -> None:
        with working():
            done.set()

    thread = threading.Thread(target=work)
    with measuring_lease():
        thread.start()
        assert not done.wait(BREATH_S)
    assert done.wait(60)
    thread.join()


def test_a_measurement_that_waits_for_another_one_says_so() -> None:
    told: list[str] = []
    waits, done = threading.Event(), threading.Event()

    def tell(words: str) -> None:
        told.append(words)
        waits.set()

    def measure() -> None:
        with measuring_lease(tell):
            done.set()

    thread = threading.Thread(target=measure)
    with measuring_lease():
        thread.start()
        assert waits.wait(60) and not done.is_set()
    assert done.wait(60)
    thread.join()
    assert told == ["waiting: another job measures on this machine"]


def test_a_measurement_that_waits_for_a_step_of_work_names_no_other_job() -> None:
    told: list[str] = []
    with measuring_lease(told.append):
        pass
    with working():
        pass
    assert told == []


def test_work_does_not_wait_for_work() -> None:
    with working(), working():
        pass


def restless(counter: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
    """Do steps of 20 ms without a pause between them, and count the steps."""
    while True:
        with working():
            time.sleep(0.02)
            counter.value += 1


def test_work_that_never_pauses_does_not_keep_a_measurement_out() -> None:
    context = multiprocessing.get_context("fork")
    counters = [context.Value("q", 0) for _ in range(3)]
    workers = [context.Process(target=restless, args=(counter,), daemon=True) for counter in counters]
    for worker in workers:
        worker.start()
    try:
        while not all(counter.value for counter in counters):
            time.sleep(0.01)
        with measuring_lease():
            before = [counter.value for counter in counters]
            time.sleep(BREATH_S)
            assert [counter.value for counter in counters] == before
        while any(counter.value <= seen for counter, seen in zip(counters, before, strict=True)):
            time.sleep(0.01)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def test_a_worker_that_dies_in_its_step_leaves_no_lock() -> None:
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)
    worker = context.Process(target=restless, args=(counter,), daemon=True)
    worker.start()
    while not counter.value:
        time.sleep(0.01)
    worker.kill()
    worker.join()
    with measuring_lease():
        pass


@pytest.mark.usefixtures("one_thread")
def test_training_takes_its_turn_for_every_step(tmp_path: Path) -> None:
    module, turns = nn.Linear(3, 1), []

    @contextmanager
    def turn() -> Iterator[None]:
        turns.append("in")
        yield
        turns.append("out")

    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    images = torch.randn(10, 3)
    with paced(turn):
        train(
            module,
            optimizer,
            10,
            Course(2, 5, 0),
            loss=lambda module, rows, _: module(images[rows]).square().mean(),
            checkpoint=tmp_path / "c.pt",
            after_epoch=lambda *_: None,
        )
    assert turns == ["in", "out"] * 4
    with step():
        assert len(turns) == 8


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_two_users_of_one_machine_share_the_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in /tmp: the folder is sticky, and the first user's umask hides new files from others."""
    tmp_path.chmod(0o1777)
    for folder in list(tmp_path.parents)[:3]:
        if folder.owner() == "root" and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    monkeypatch.setenv("VITFIT_LOCKS", str(tmp_path))
    assert [measured_as(user) for user in (65533, 65534)] == ["measured", "measured"]


def test_a_folder_that_cannot_hold_the_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITFIT_LOCKS", str(tmp_path / "absent"))
    with (
        pytest.raises(DeviceUnavailable, match=r"lock file '.*absent.*Set VITFIT_LOCKS to a folder"),
        measuring_lease(),
    ):
        pass


def test_without_a_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITFIT_LOCKS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/absent"])
    with pytest.raises(DeviceUnavailable, match="Set VITFIT_LOCKS"), measuring_lease():
        pass


def measured_as(user: int) -> str:
    """Take the lease in a process of another user, and return what the process says."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.umask(0o077)
        os.setgid(user)
        os.setuid(user)
        try:
            with measuring_lease():
                os.write(writer, b"measured")
        except (OSError, DeviceUnavailable) as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader, "rb") as said:
        return said.read().decode()
