"""Where uploads and finished files are kept: in the data folder, or in a bucket (service/storage/bucket.py). To all others it is the same.

A bundle is a set of files under a key such as `models/mdl_1` or `jobs/job_1/artifacts`.
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
    """All methods raise `StorageAway` when the storage does not answer."""

    is_shared: bool
    """Whether servers on other machines see it."""

    def check(self) -> None:
        """Prove that files can be kept. Raises: StorageUnusable, NewerData, OSError, StorageAway."""

    def put(self, key: str, folder: Path) -> None:
        """Keep the files of a folder, which may lose them: a new bundle appears at once or not at all. Again under the same
        key: the new files take the old ones' place."""

    def files(self, key: str) -> list[StoredFile]:
        """By name; empty when there is no such bundle."""

    def folder(self, key: str) -> Path:
        """A folder of this machine with the bundle's files, to read. Raises: NotFound."""

    def file(self, key: str, file: StoredFile) -> Path:
        """One file of a bundle on this machine, to read. Raises: NotFound."""

    def link(self, key: str, file: StoredFile, media_type: str) -> str | None:
        """An address where anybody may fetch the file for some minutes; None where files are had from this server only."""

    def ids(self, kind: str) -> list[str]:
        """What stands below `kind`, such as `jobs`."""

    def delete(self, key: str) -> None:
        """Of what has a key that begins with this one, too."""

    def trim(self, needed: Collection[str]) -> None:
        """Free room on this machine, if more than allowed is used; bundles with these keys stay."""


def visible_files(folder: Path) -> list[Path]:
    """By name, without what is not finished yet."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]


def describe(path: Path) -> StoredFile:
    """A finished file with its digest."""
    stat = path.stat()
    return StoredFile(path.name, stat.st_size, _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, inode: int, size: int, changed_ns: int) -> str:
    """The digest, once for each version of a file (the other arguments are only the cache's key)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
