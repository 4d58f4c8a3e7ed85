"""The storage that keeps bundles in the data folder."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from service.core.data_folder import DataFolder
from service.core.errors import NotFound
from service.storage.base import StoredFile, describe, visible_files


class LocalStorage:
    """Stores each bundle as a folder in the data folder."""

    is_shared = False

    def __init__(self, folder: DataFolder) -> None:
        self._folder, self._root = folder, folder.root

    def check(self) -> None:
        self._folder.create()

    def put(self, key: str, folder: Path) -> None:
        place = self._root / key
        if folder == place:  # the files of a job are written to their final folder, one by one
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            os.replace(folder, place)
            return
        for path in visible_files(folder):
            os.replace(path, place / path.name)

    def files(self, key: str) -> list[StoredFile]:
        return [describe(path) for path in visible_files(self._root / key)]

    def folder(self, key: str) -> Path:
        place = self._root / key
        if not place.is_dir():
            raise NotFound("bundle", key)
        return place

    def file(self, key: str, file: StoredFile) -> Path:
        return self.folder(key) / file.name

    def link(self, key: str, file: StoredFile, media_type: str) -> str | None:
        return None

    def ids(self, kind: str) -> list[str]:
        place = self._root / kind
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else []

    def delete(self, key: str) -> None:
        shutil.rmtree(self._root / key, ignore_errors=True)

    def trim(self, needed: Collection[str]) -> None:
        """Do nothing: this storage makes no local copies."""
