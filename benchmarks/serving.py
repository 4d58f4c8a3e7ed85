"""Local server for one benchmark, on a free loopback port and without access tokens. It ends with the benchmark."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vitfit import VitfitError

START_S = 60.0
PR_SET_PDEATHSIG = 1


class Serving:
    """A server that can be killed and started again, on the same data folder or on another one."""

    def __init__(self, folder: Path, **environment: str) -> None:
        """Prepare the server.

        folder: for the address file and the log. environment: VITFIT_ variables.
        """
        self._ready, self._log = folder / "address", folder / "server.log"
        self._environment = {**os.environ, "VITFIT_ANONYMOUS": "1", **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, data: Path) -> str:
        """Start the server and return its address.

        Raises: VitfitError with the last lines of the log when the server does not start.
        """
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "service.serve", "--data", str(data), "--host", "127.0.0.1", "--port", "0"]
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                [*command, "--ready-file", str(self._ready)],
                env=self._environment,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        end = time.monotonic() + START_S
        while not self._ready.exists():
            if process.poll() is not None or time.monotonic() > end:
                self.end()
                lines = self._log.read_text(errors="replace").splitlines()[-10:]
                raise VitfitError.local("no-server", "The server did not start:\n" + "\n".join(lines))
            time.sleep(0.05)
        return self._ready.read_text().strip()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the server and wait until it has ended."""
        assert self._process is not None
        self._process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=60)
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def serving(folder: Path, **environment: str) -> Iterator[str]:
    """Run a server with an empty data folder. Yield its address.

    Raises: VitfitError when the server does not start.
    """
    server = Serving(folder, **environment)
    try:
        yield server.start(folder / "data")
    finally:
        server.end()


def processes(folder: str) -> dict[int, str]:
    """Return the running processes that were started for this folder: process id -> command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if folder in command and state != "Z" and int(entry.name) != os.getpid():
            found[int(entry.name)] = command
    return found


def _die_with_parent() -> None:
    """Ask Linux to send SIGTERM to this child when the benchmark is killed, because then it cannot clean up."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
