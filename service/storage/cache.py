"""The cache of a bucket's files on this machine.

Each file is stored once, under its SHA-256. The folder of a bundle consists of hard links to these files.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path


class Cache:
    """The cache folder. Several processes use it at the same time, so every file and folder appears in it complete."""

    def __init__(self, root: Path, limit_bytes: int | None) -> None:
        """Create the folders of the cache.

        Args:
            root: the cache folder.
            limit_bytes: upper limit that `trim` enforces; None for no limit.
        """
        self._root, self._limit = root, limit_bytes
        self._files, self._folders, self._arriving = root / "files", root / "folders", root / "arriving"
        for folder in (self._files, self._folders, self._arriving):
            folder.mkdir(parents=True, exist_ok=True)

    def file(self, sha256: str) -> Path | None:
        """Return the path of a cached file, or None. The call counts as a use of the file."""
        return _used(self._files / sha256)

    def take(self, path: Path, sha256: str) -> Path:
        """Move a file into the cache, and return its new path."""
        place = self._files / sha256
        if path.stat().st_dev == self._files.stat().st_dev:
            os.replace(path, place)
        else:
            with self.arriving() as beside:
                shutil.copyfile(path, beside)
                os.replace(beside, place)
            path.unlink()
        return place

    @contextlib.contextmanager
    def arriving(self) -> Iterator[Path]:
        """Provide a temporary path for an incomplete file. A file that is still there at the end is deleted."""
        path = self._arriving / secrets.token_hex(16)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def folder(self, key: str) -> Path | None:
        """Return the folder of a cached bundle, or None. The call counts as a use of the bundle."""
        return _used(self._folders / key)

    def make_folder(self, key: str, files: Mapping[str, Path]) -> Path:
        """Create the folder of a bundle from cached files, and return it.

        Args:
            key: the key of the bundle.
            files: paths of cached files by their names in the bundle.
        """
        place, beside = self._folders / key, self._arriving / secrets.token_hex(16)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        for name, file in files.items():
            os.link(file, beside / name)
        try:
            os.rename(beside, place)
        except OSError:  # another process has created the folder meanwhile
            shutil.rmtree(beside)
        return place

    def forget(self, key: str) -> None:
        """Delete the folder of this key and all folders below it.

        The cached files stay until `trim` finds that no folder links to them.
        """
        shutil.rmtree(self._folders / key, ignore_errors=True)

    def trim(self, needed: Collection[str]) -> None:
        """Delete the least recently used bundles until the cache is within its limit.

        Bundles whose keys are in `needed` are kept.
        """
        if self._limit is None:
            return
        folders = [path for path in self._folders.glob("*/*") if str(path.relative_to(self._folders)) not in needed]
        for path in sorted(folders, key=_last_use):
            if self._used_bytes() <= self._limit:
                return
            shutil.rmtree(path, ignore_errors=True)
            self._drop_loose()
        self._drop_loose()

    def _drop_loose(self) -> None:
        """Delete files that no folder links to, least recently used first, until the cache is within its limit."""
        loose = [path for path in self._files.iterdir() if path.stat().st_nlink == 1]
        for path in sorted(loose, key=_last_use):
            if self._used_bytes() <= (self._limit or 0):
                return
            path.unlink(missing_ok=True)

    def _used_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._files.iterdir())


def _used(path: Path) -> Path | None:
    try:
        os.utime(path)
    except FileNotFoundError:
        return None
    return path


def _last_use(path: Path) -> float:
    return path.stat().st_mtime
