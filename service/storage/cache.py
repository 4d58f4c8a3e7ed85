"""Copies of a bucket's files on this machine: each once, under its SHA-256; folders are made of hard links to them."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path


class Cache:
    """Several processes use one folder at once: what appears in it does so whole."""

    def __init__(self, root: Path, limit_bytes: int | None) -> None:
        """limit_bytes: None for as much as the disk has."""
        self._root, self._limit = root, limit_bytes
        self._files, self._folders, self._arriving = root / "files", root / "folders", root / "arriving"
        for folder in (self._files, self._folders, self._arriving):
            folder.mkdir(parents=True, exist_ok=True)

    def file(self, sha256: str) -> Path | None:
        """Asking counts as use."""
        return _used(self._files / sha256)

    def take(self, path: Path, sha256: str) -> Path:
        """Move a file in."""
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
        """A name for what is not whole yet; what is not taken is deleted."""
        path = self._arriving / secrets.token_hex(16)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def folder(self, key: str) -> Path | None:
        """Asking counts as use."""
        return _used(self._folders / key)

    def make_folder(self, key: str, files: Mapping[str, Path]) -> Path:
        """files: of the cache, by the names that they get."""
        place, beside = self._folders / key, self._arriving / secrets.token_hex(16)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        for name, file in files.items():
            os.link(file, beside / name)
        try:
            os.rename(beside, place)
        except OSError:  # another process was faster
            shutil.rmtree(beside)
        return place

    def forget(self, key: str) -> None:
        """Of keys that begin with this one, too. The files go with `trim`, when no folder has them."""
        shutil.rmtree(self._folders / key, ignore_errors=True)

    def trim(self, needed: Collection[str]) -> None:
        """Delete what was not used for longest until the limit holds, except folders with these keys."""
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
        """Files that no folder has."""
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
