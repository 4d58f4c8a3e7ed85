"""Locks for the whole machine: one process measures at a time, and other work of vitfit waits meanwhile.

There are two file locks, gate and floor. The operating system releases them when a process dies. A measurement takes
both exclusively. Other work passes the gate and shares the floor. A measurement holds the gate while it waits for the
floor, so workers that follow one another without a pause cannot keep it out.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from latency.devices.host import LOCKS, lock_folder
from models.errors import DeviceUnavailable

Tell = Callable[[str], None]
"""A function that takes a few words on what happens now."""
WAITING: Final = "waiting: another job measures on this machine"

READABLE, ATTEMPTS = 0o644, 10
GATE, FLOOR = "vitfit-measuring.gate", "vitfit-measuring.lock"


def silent(_words: str) -> None:
    """Take the words, and do nothing with them."""


@contextmanager
def measuring_lease(tell: Tell = silent) -> Iterator[None]:
    """Hold the machine for a measurement. First wait for the end of other measurements and of work steps under way.

    tell: is told `WAITING` before the wait for another measurement.
    """
    if _is_measured():
        tell(WAITING)
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


def _is_measured() -> bool:
    """Return whether a process measures on this machine, or waits for the end of work steps to measure."""
    handle = _opened(lock_file(GATE))
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # steps of work share the gate, so they are not noticed
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _unusable(path: Path, error: OSError) -> DeviceUnavailable:
    return DeviceUnavailable(
        f"vitfit cannot make the lock file {str(path)!r} ({error.strerror}). Measurements need it, so that only one"
        f" process measures at a time. Set {LOCKS} to a folder that all users of this machine can write to."
    )


@contextmanager
def _locked(name: str, how: int) -> Iterator[None]:
    handle = _opened(lock_file(name))
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def lock_file(name: str) -> Path:
    """Return the path of a lock file. Raises: DeviceUnavailable if there is no folder for temporary files."""
    try:
        return lock_folder() / name
    except FileNotFoundError as error:
        raise DeviceUnavailable(
            f"vitfit cannot make the lock files for measurements ({error}). Set {LOCKS} to a folder that all users of"
            " this machine can write to."
        ) from error


def _opened(path: Path) -> int:
    """Open a lock file that any user of the machine may have made. A lock needs no right to write.

    In a folder such as /tmp, Linux refuses O_CREAT for a file that another user has made. So the file is created only
    if it does not exist.
    """
    for _ in range(ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, READABLE)
        except FileExistsError:
            continue
        except PermissionError as error:
            raise _unusable(path, error) from error
        except OSError as error:
            if error.errno in (errno.EROFS, errno.ENOENT):
                raise _unusable(path, error) from error
            raise  # a full disk is handled where the job waits for space
        os.fchmod(handle, READABLE)  # whatever the umask is
        return handle
    raise FileNotFoundError(f"The lock file {path} is deleted again and again. Choose another folder: {LOCKS}.")
