"""Locks for the whole machine: one process measures at a time, and other work of vitfit waits meanwhile.

There are two file locks, gate and floor. The operating system releases them when a process dies. A measurement takes
both exclusively. Other work passes the gate and shares the floor. A measurement holds the gate while it waits for the
floor, so workers that follow one another without a pause cannot keep it out.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(os.environ.get("VITFIT_LOCKS", tempfile.gettempdir()))
"""Folder of the locks, the same for all processes of a machine. Tests that run in parallel have one folder each."""
GATE, FLOOR = FOLDER / "vitfit-measuring.gate", FOLDER / "vitfit-measuring.lock"


@contextmanager
def measuring_lease() -> Iterator[None]:
    """Hold the machine for a measurement. First wait for the end of other measurements and of work steps under way."""
    with _locked(GATE, fcntl.LOCK_EX), _locked(FLOOR, fcntl.LOCK_EX):
        yield


@contextmanager
def working() -> Iterator[None]:
    """Wrap a step of work that takes seconds at most. It starts when nobody measures.

    Never wrap a measurement in it: the measurement would wait for itself.
    """
    with _locked(GATE, fcntl.LOCK_SH):
        pass
    with _locked(FLOOR, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, how)
        yield
