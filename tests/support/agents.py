"""Helpers that run `vitfit token create` and `vitfit agent` as processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def token(data: Path, *scopes: str) -> str:
    """Create an access token with these scopes, and return its secret."""
    options = [word for scope in scopes for word in ("--scope", scope)]
    command = [sys.executable, "-m", "vitfit.cli", "token", "create", "pi", *options, "--data", str(data), "--json"]
    return str(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["secret"])


@contextmanager
def agent(
    address: str, secret: str, folder: Path, *options: str, under: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent of the device agent-pi-5. under: a command prefix, such as `nice`, under which the agent runs."""
    command = [*under, sys.executable, "-m", "vitfit.cli", "agent", "--name", "pi-5", "--server", address]
    with (folder / "agent.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--cache", str(folder / "cache"), *options],
            env={**os.environ, "VITFIT_TOKEN": secret},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=20)
