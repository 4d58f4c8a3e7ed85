"""Tests of workers and servers that die, stop or sleep. The job continues, and no finished trial is evaluated twice."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from service.core.data_folder import HOUR_S, DataFolder
from tests.support.running import Server, is_alive, wait_until


def finished_once(server: Server, job_id: str, finished: list[int]) -> bool:
    """Return whether each trial of `finished` has been evaluated only once."""
    begun = [number for number, _ in server.evaluated(job_id)]
    return all(begun.count(number) == 1 for number in finished)


def test_a_killed_worker_goes_on_from_its_last_finished_trial(own_server: Server) -> None:
    job = own_server.submit(own_server.model(), trials=6)
    finished = own_server.wait_for_trials(job, 2)
    half = own_server.data / "jobs" / job / "work" / "probe3.onnx.99.part"
    half.write_bytes(b"as the killed process left it")
    os.kill(own_server.evaluated(job)[-1][1], signal.SIGKILL)
    done = own_server.wait(job)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    assert own_server.trials(job) == [0, 1, 2, 3, 4, 5]
    assert finished_once(own_server, job, finished) and not half.exists()


def test_tables_that_nobody_finishes_any_more_go(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.create()
    old, new = folder.tables / "old.json.1.part", folder.tables / "new.json.2.part"
    for file in (old, new):
        file.touch()
    os.utime(old, (0, time.time() - 2 * HOUR_S))
    folder.sweep()
    assert not old.exists() and new.exists()


def test_a_killed_server_takes_its_worker_along_and_the_job_goes_on_after_a_restart(own_server: Server) -> None:
    model = own_server.model()
    job, waiting = own_server.submit(model, trials=6), own_server.submit(model, trials=1)
    finished = own_server.wait_for_trials(job, 2)
    worker = own_server.evaluated(job)[-1][1]
    own_server.end(signal.SIGKILL)
    wait_until(lambda: not is_alive(worker), "the end of the worker")
    own_server.start()
    done = own_server.wait(job)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    assert finished_once(own_server, job, finished)
    assert own_server.wait(waiting)["status"] == "succeeded"


def test_a_stopped_server_ends_cleanly_and_the_job_goes_on_after_a_restart(own_server: Server) -> None:
    job = own_server.submit(own_server.model(), trials=6)
    finished = own_server.wait_for_trials(job, 2)
    worker = own_server.evaluated(job)[-1][1]
    assert own_server.end(signal.SIGTERM) == 0
    assert not is_alive(worker)
    own_server.start()
    assert own_server.wait(job)["status"] == "succeeded"
    assert finished_once(own_server, job, finished)


def test_a_cancel_that_a_dead_server_had_not_carried_out_holds_after_a_restart(own_server: Server) -> None:
    job = own_server.submit(own_server.model(), trials=500, name="stubborn")
    own_server.wait_for_trials(job, 1)
    own_server.client.post(f"/v1/jobs/{job}/cancel")
    own_server.end(signal.SIGKILL)
    assert own_server.start().wait(job)["status"] == "canceled"


@pytest.mark.slow
def test_a_worker_that_slept_past_its_lease_is_fenced_off(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", VITFIT_FAKE_TRIAL_S="0.15", VITFIT_LEASE_S="2").start()
    try:
        job = server.submit(server.model(), trials=24)
        server.wait_for_trials(job, 1)
        sleeper = server.evaluated(job)[-1][1]
        os.kill(sleeper, signal.SIGSTOP)
        wait_until(lambda: server.job(job)["status"] == "queued" or server.job(job)["attempt"] == 2, "the takeover")
        finished = server.trials(job)
        os.kill(sleeper, signal.SIGCONT)
        wait_until(lambda: not is_alive(sleeper), "the end of the sleeper")
        done = server.wait(job)
        assert done["status"] == "succeeded" and done["attempt"] >= 2
        assert server.trials(job) == list(range(24))
        assert finished_once(server, job, finished)
    finally:
        server.end()


@pytest.mark.slow
def test_two_servers_on_one_data_folder_run_each_job_once(own_server: Server) -> None:
    other = Server(own_server.data, VITFIT_FAKE_TRIAL_S="0.05").start()
    try:
        model = own_server.model()
        ids: list[str] = []
        threads = [
            threading.Thread(target=lambda server=server: ids.append(server.submit(model, trials=2)))
            for server in (own_server, other) * 3
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for job_id in ids:
            assert [other.wait(job_id)[key] for key in ("status", "attempt")] == ["succeeded", 1]
            assert [number for number, _ in other.evaluated(job_id)] == [0, 1]
    finally:
        other.end()
