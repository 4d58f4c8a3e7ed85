"""Tests that measure real files in real processes. They check behaviour, never seconds."""

import contextlib
import fcntl
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import vitfit.machine
from vitfit.measuring import bind, feeds, open_session

import latency.devices.devices
from latency.devices.devices import describe_device, device_names, machine_of
from latency.devices.setting import Setting
from latency.measuring.machine_lock import FLOOR, lock_file, measuring_lease
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import ratio
from models.errors import DeviceUnavailable
from service.jobs.job_request import BudgetRequest
from service.pipeline.pricing import place_of
from tests.support.networks import small_network

SHORT = Effort(seconds=0.4, processes=2, rounds=15, width=10.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Export a small network and one with six times as many blocks, at batch size 1."""
    folder = tmp_path_factory.mktemp("onnx")
    for name, depth in (("small", 1), ("large", 6)):
        small_network(depth=depth, embed_dim=96).export(folder / f"{name}.onnx", 1)
    return folder / "small.onnx", folder / "large.onnx"


def test_original_and_candidate_are_measured_in_the_same_rounds(files: tuple[Path, Path]) -> None:
    large, small = Meter(Setting()).measure([files[1], files[0]], SHORT)
    assert [len(p) for p in large.samples_ms] == [len(p) for p in small.samples_ms]
    assert len(large.samples_ms) >= 2 and min(len(p) for p in large.samples_ms) >= 15
    assert ratio(small, large).high < 0.6


def test_sampling_goes_on_while_the_interval_is_wide(files: tuple[Path, Path]) -> None:
    never, told = Effort(seconds=0.4, processes=2, rounds=5, width=0.0), list[str]()
    found = Meter(Setting()).measure([files[0], files[0]], never, what="two files", tell=told.append)
    assert told == [f"measuring two files, process {number} of at most 4" for number in (1, 2, 3, 4)]
    assert len(found[0].samples_ms) == 4, "twice the processes, then the time is spent"


def test_more_threads_than_cores_are_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(DeviceUnavailable, match="999 threads"):
        Meter(Setting(threads=999)).measure([files[0]], SHORT)


def test_another_batch_than_the_files_is_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(DeviceUnavailable, match="fixed batch of 1"):
        Meter(Setting(batch=4)).measure([files[0]], SHORT)


def test_a_provider_that_is_not_there_is_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(DeviceUnavailable, match="TensorrtExecutionProvider"):
        Meter(Setting(provider="TensorrtExecutionProvider")).measure([files[0]], SHORT)


def test_a_broken_file_is_an_error_not_a_hang(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(DeviceUnavailable, match="measuring process on cpu failed"):
        Meter(Setting()).measure([tmp_path / "broken.onnx"], SHORT)


def test_one_thing_measures_at_a_time(files: tuple[Path, Path]) -> None:
    done = threading.Event()

    def measure() -> None:
        Meter(Setting()).measure([files[0]], SHORT)
        done.set()

    thread = threading.Thread(target=measure)
    with measuring_lease():
        thread.start()
        assert not done.wait(1.5), "somebody else holds the lease"
    assert done.wait(60)
    thread.join()


class Killer:
    """A helper that kills measuring children of this process, at most `most` of them."""

    def __init__(self, most: int) -> None:
        self.killed: list[int] = []
        self._most, self._over = most, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while len(self.killed) < self._most and not self._over.wait(0.02):
            for pid in set(measuring_children()) - set(self.killed):
                os.kill(pid, signal.SIGKILL)
                self.killed.append(pid)


def measuring_children() -> list[int]:
    """Return the ids of the measuring children of this process, also of those that ended and that nobody has reaped."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"vitfit.measuring" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def is_free() -> bool:
    """Return whether nobody measures on this machine."""
    with lock_file(FLOOR).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_killed_measuring_child_is_started_again_and_the_measurement_is_whole(files: tuple[Path, Path]) -> None:
    with Killer(2) as killer:
        (found,) = Meter(Setting()).measure([files[0]], SHORT)
    assert len(killer.killed) == 2
    assert len(found.samples_ms) >= SHORT.processes and min(len(p) for p in found.samples_ms) >= SHORT.rounds
    assert measuring_children() == [] and is_free()


def test_a_measurement_whose_child_is_always_killed_fails_with_the_reason(files: tuple[Path, Path]) -> None:
    with Killer(99) as killer, pytest.raises(DeviceUnavailable, match="killed by SIGKILL, 3 times in a row"):
        Meter(Setting()).measure([files[0]], SHORT)
    assert len(killer.killed) == 3
    assert measuring_children() == [] and is_free(), "others may measure now"


def test_every_image_is_fed_equally_often(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((7, 3, 48, 48), np.float32))
    found = Meter(Setting()).measure(files, SHORT, images=tmp_path / "images.npy")
    assert all(len(rounds) % 7 == 0 for rounds in found[0].samples_ms + found[1].samples_ms)


def test_images_of_another_shape_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 3, 32, 32), np.float32))
    with pytest.raises(DeviceUnavailable, match="the file needs"):
        Meter(Setting()).measure([files[0]], SHORT, images=tmp_path / "images.npy")


def test_inputs_and_outputs_that_stay_on_the_device_give_the_same_answer(files: tuple[Path, Path]) -> None:
    """Check the I/O binding that measurements on a GPU use. The test runs it on the CPU, which every machine has."""
    request = {"threads": 1, "batch": 1, "provider": "CPUExecutionProvider", "seed": 0}
    session = open_session(str(files[0]), request)
    inputs = feeds(session, request)[0]
    binding = bind(session, inputs, "cpu", 0)
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], session.run(None, inputs)[0])


def test_gpus_are_devices_where_their_runtime_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("NVIDIA H100", "NVIDIA L4")):
        (tmp_path / f"0000:0{number}").mkdir()
        (tmp_path / f"0000:0{number}" / "information").write_text(f"Model: \t\t {name}\nIRQ: 1\n")
    monkeypatch.setattr(vitfit.machine, "NVIDIA", tmp_path)
    assert not any(name.startswith("cuda:") for name in device_names())
    monkeypatch.setattr(latency.devices.devices, "has_cuda", lambda: True)
    assert {"cuda:0", "cuda:1"} <= set(device_names()) and "NVIDIA L4" in describe_device("cuda:1")["description"]
    device, setting = place_of(BudgetRequest(metric="latency_keep", limit=0.5, device="cuda:1"))
    assert setting.provider == "CUDAExecutionProvider" and machine_of(device) == "NVIDIA L4"
