"""The interface of the storage for uploads and finished files.

They are kept in the data folder (service/storage/local_folder.py) or in a bucket (service/storage/bucket.py). Callers
do not need to know which one. A bundle is a set of files under a key such as `models/mdl_1` or
`jobs/job_1/artifacts`.
"""

import functools
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class StoredFile:
    """A finished file of a bundle."""

    name: str
    size_bytes: int
    sha256: str  # hexadecimal


class Storage(Protocol):
    """Stores bundles of files. Every method raises `StorageAway` when the storage does not answer."""

    is_shared: bool
    """Whether servers on other machines can read and write this storage."""

    def check(self) -> None:
        """Check that the storage can store files. Raises: StorageUnusable, NewerData, OSError, StorageAway."""

    def put(self, key: str, folder: Path) -> None:
        """Store the files of a folder as a bundle. The files may be moved out of the folder.

        A new bundle appears with all its files or not at all. If the key already has a bundle, the new files replace
        the old files.
        """

    def files(self, key: str) -> list[StoredFile]:
        """List the files of a bundle by name; empty when there is no such bundle."""

    def folder(self, key: str) -> Path:
        """Return a folder on this machine with the files of a bundle, for reading only. Raises: NotFound."""

    def file(self, key: str, file: StoredFile) -> Path:
        """Return the path on this machine of one file of a bundle, for reading only. Raises: NotFound."""

    def link(self, key: str, file: StoredFile, media_type: str) -> str | None:
        """Return a URL from which anybody can download the file for the next 15 minutes.

        None if files can only be downloaded through this server.
        """

    def ids(self, kind: str) -> list[str]:
        """List the ids that have files under `kind`, such as `jobs`."""

    def delete(self, key: str) -> None:
        """Delete the bundle with this key and all bundles whose key lies below it."""

    def trim(self, needed: Collection[str]) -> None:
        """Delete local copies until they are within their limit. Keep the bundles whose keys are in `needed`."""


def visible_files(folder: Path) -> list[Path]:
    """List the files of a folder by name, without hidden files, which may be unfinished."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]


def describe(path: Path) -> StoredFile:
    """Return the name, size and digest of a finished file."""
    stat = path.stat()
    return StoredFile(path.name, stat.st_size, _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, inode: int, size: int, changed_ns: int) -> str:
    """Compute the digest once per version of a file. The other arguments only serve as the key of the cache."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
