from collections.abc import Iterator

import pytest
from vitfit import Client, connection

from tests.support.fake_server import FakeServer


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between retries to milliseconds."""
    monkeypatch.setattr(connection, "FIRST_PAUSE_S", 0.002)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made
