"""Measuring real files in real processes. What is checked is behaviour, never seconds."""

import threading
from pathlib import Path

import numpy as np
import pytest

from latency.lease import measuring_lease
from latency.meter import Effort, Meter
from latency.sampling import ratio
from latency.setting import Setting
from models.errors import DeviceUnavailable
from tests.models.networks import small_network

SHORT = Effort(seconds=0.4, processes=2, rounds=15, width=10.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network and one with six times its blocks, batch 1."""
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
    never = Effort(seconds=0.4, processes=2, rounds=5, width=0.0)
    found = Meter(Setting()).measure([files[0], files[0]], never)
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
    with pytest.raises(DeviceUnavailable, match="measuring process failed"):
        Meter(Setting()).measure([tmp_path / "broken.onnx"], SHORT)


def test_one_thing_measures_at_a_time(files: tuple[Path, Path]) -> None:
    done = threading.Event()
    thread = threading.Thread(target=lambda: (Meter(Setting()).measure([files[0]], SHORT), done.set()))
    with measuring_lease():
        thread.start()
        assert not done.wait(1.5), "somebody else holds the lease"
    assert done.wait(60)
    thread.join()


def test_every_image_is_fed_equally_often(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((7, 3, 48, 48), np.float32))
    found = Meter(Setting()).measure(files, SHORT, images=tmp_path / "images.npy")
    assert all(len(rounds) % 7 == 0 for rounds in found[0].samples_ms + found[1].samples_ms)


def test_images_of_another_shape_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 3, 32, 32), np.float32))
    with pytest.raises(DeviceUnavailable, match="the file takes"):
        Meter(Setting()).measure([files[0]], SHORT, images=tmp_path / "images.npy")
