"""`vitfit serve` as a process, for tests that need a real server behind the client.

Its engine is the public fake engine.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

START_S = 40.0


@contextlib.contextmanager
def served(folder: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """Start a server, and give its address. The server ends with the block."""
    ready = folder / "ready"
    command = [sys.executable, "-m", "vitfit.cli", "serve", "--ready-file", str(ready), *arguments]
    variables = {**os.environ, "VITFIT_ENGINE": "fake", **environment}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + START_S
        while not ready.exists():
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < end, (folder / "server.log").read_text()
            time.sleep(0.02)
        yield ready.read_text().strip()
    finally:
        process.terminate()
        process.wait(timeout=20)
