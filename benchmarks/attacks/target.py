"""The server that is attacked, on loopback, with a data folder of its own, and the watch over it."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.serving import Serving, processes
from service.api.access_tokens import Tokens
from service.core.settings import Settings
from service.db.tables import Store

SCOPES = {"ann": ("read", "submit"), "bob": ("read", "submit"), "eve": ("read", "submit", "agent"), "pi": ("agent",)}
PATIENCE_S = 120.0
WATCH_S = 0.25


class Open(Exception):
    """The attack worked. The text says what was seen."""


@dataclass
class Watch:
    """The slowest answer of /livez in seconds, and the memory of all processes of the server in bytes."""

    slowest_s: float = 0.0
    memory_at_start: int = 0
    memory_most: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, address: str, folder: Path) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self._stop.wait(WATCH_S):
                began = time.monotonic()
                with contextlib.suppress(httpx.HTTPError):
                    client.get(f"{address}/livez")
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.memory_most = max(self.memory_most, memory_of_server(folder))

    def stop(self) -> None:
        self._stop.set()


@dataclass
class Target:
    """A running server and its callers."""

    address: str
    folder: Path
    tokens: dict[str, str]
    watch: Watch

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def client(self, person: str | None = None) -> httpx.Client:
        headers = {} if person is None else {"Authorization": f"Bearer {self.tokens[person]}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=PATIENCE_S)


@contextlib.contextmanager
def target(folder: Path, **environment: str) -> Iterator[Target]:
    """Run a server with access tokens, and watch it."""
    server, watch = Serving(folder, **{"VITFIT_ANONYMOUS": "0", **environment}), Watch()
    address = server.start(folder / "data")
    store = Store(Settings(data=folder / "data").database)
    tokens = {name: Tokens(store).create(name, scopes)[1] for name, scopes in SCOPES.items()}
    store.close()
    watch.memory_at_start = watch.memory_most = memory_of_server(folder)
    thread = threading.Thread(target=watch.run, args=(address, folder), daemon=True)
    thread.start()
    try:
        yield Target(address, folder, tokens, watch)
    finally:
        watch.stop()
        thread.join()
        server.end()


def memory_of_server(folder: Path) -> int:
    """Return the resident memory of the web process, in bytes."""
    whole = 0
    for pid, command in processes(str(folder)).items():
        with contextlib.suppress(OSError):
            if "service.serve" in command:
                whole += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return whole


def expect(answer: httpx.Response, statuses: Sequence[int], what: str) -> None:
    """Check the status of an answer, and that a refusal names no path. Raises: Open."""
    if answer.status_code not in statuses:
        raise Open(f"{what}: {answer.status_code} {answer.text[:120]}")
    if answer.status_code >= 400 and ("/tmp/" in answer.text or "/data/" in answer.text):
        raise Open(f"{what}: the refusal names a path: {answer.text[:160]}")
