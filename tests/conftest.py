"""Fixtures of all tests."""

import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ["VITFIT_ANONYMOUS"] = "1"  # tests of tokens say otherwise
os.environ["VITFIT_LOCKS"] = tempfile.mkdtemp(
    prefix="vitfit-locks-"
)  # processes that test side by side do not wait for each other


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small networks: threads would only wait for each other."""
    import torch  # most of the client's and the web process's tests need none

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
