"""A full disk: which errors mean it, however the libraries put it, and what is said then."""

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.core.errors import StorageFull

NUMBERS: Final = (errno.ENOSPC, errno.EDQUOT)
WORDS: Final = re.compile(
    r"no space left on device|disk quota exceeded|database or disk is full|\d+ requested and \d+ written", re.IGNORECASE
)
"""safetensors and children's messages; quotas; SQLite; NumPy. torch says nothing of use: it is given open files instead."""
SQLITE: Final = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")


def is_full(error: BaseException) -> bool:
    """Whether a full disk is behind it: the error itself, or what it was raised from or after."""
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


def storage_full(folder: Path, what: str) -> StorageFull:
    """what: a sentence, of what did not go on."""
    free = free_bytes(folder)
    return StorageFull(
        f"{what} The server's disk is full: {free:,} bytes are free. Delete jobs, models or data sets that you no longer need, or ask "
        "the operator to make room; then try again.", free_bytes=free,
    )  # fmt: skip
