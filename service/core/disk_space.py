"""Recognise "disk full" in the errors of different libraries, and turn it into one problem response."""

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.core.errors import StorageFull

NUMBERS: Final = (errno.ENOSPC, errno.EDQUOT)
WORDS: Final = re.compile(
    r"no space left on device|disk quota exceeded|database or disk is full|\d+ requested and \d+ written", re.IGNORECASE
)
"""Messages for a full disk: safetensors and child processes, quotas, SQLite, NumPy (in this order).

torch is missing because its message does not mention the disk. It is given open files instead of paths, so that Python
raises the error.
"""
SQLITE: Final = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")


def is_full(error: BaseException) -> bool:
    """Whether a full disk caused this error: either the error itself or one in its chain of causes says so."""
    return any(_says_full(link) for link in _chain(error))


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return True
    return getattr(error, "sqlite_errorname", None) in SQLITE or WORDS.search(str(error)) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def temporary_folder() -> Path:
    """Return the folder for temporary files: that of TMPDIR, or the first usable one that Python finds.

    Raises: StorageFull if no file can be written to any of them.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # Python tries to write a file, so this is also a full disk
        raise StorageFull(
            f"vitfit cannot write temporary files ({error}). Every folder that Python tried is full or read-only. Set"
            " the environment variable TMPDIR to a folder with space.",
        ) from error


def storage_full(folder: Path, what: str) -> StorageFull:
    """Build the error for a full disk.

    Args:
        folder: a folder on the full disk; the message names its free space.
        what: a sentence that says which operation failed.
    """
    free = free_bytes(folder)
    return StorageFull(
        f"{what} The disk of the server is full: {free:,} bytes are free. Delete jobs, models or data sets that you no "
        "longer need, or ask the operator to make room. Then try again.",
        free_bytes=free,
    )
