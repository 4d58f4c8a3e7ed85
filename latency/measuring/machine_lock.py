"""One thing measures on a machine at a time, and other work of ours waits meanwhile.

Two locks of the operating system, released by it when a process dies. Who measures takes both for itself; who works passes the
gate and shares the floor. The gate is held while waiting for the floor, so workers that follow one another without a pause
cannot keep a measurement out.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(os.environ.get("VITFIT_LOCKS", tempfile.gettempdir()))
"""The same for everybody on a machine. Tests that run side by side have one each."""
GATE, FLOOR = FOLDER / "vitfit-measuring.gate", FOLDER / "vitfit-measuring.lock"


@contextmanager
def measuring_lease() -> Iterator[None]:
    """Waits for the end of other measurements, and of the steps that others are in the middle of."""
    with _locked(GATE, fcntl.LOCK_EX), _locked(FLOOR, fcntl.LOCK_EX):
        yield


@contextmanager
def working() -> Iterator[None]:
    """Around a step of seconds at most. Waits while somebody measures. Never around a measurement: it would wait for itself."""
    with _locked(GATE, fcntl.LOCK_SH):
        pass
    with _locked(FLOOR, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, how)
        yield
