"""Fixtures for all tests."""

import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ["VITFIT_ANONYMOUS"] = "1"  # tests of access tokens change this setting
os.environ["VITFIT_LOCKS"] = tempfile.mkdtemp(
    prefix="vitfit-locks-"
)  # tests that run side by side must not wait for each other


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, because the threads of a small network would only wait for each other."""
    import torch  # most tests of the client and of the web process need no torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
