"""Backups of a server: its database and its files, while it runs.

The database is copied first, by SQLite's own online backup. Then the files are copied. A file that is deleted meanwhile
is missing in the backup, and the job, model or data set that it belonged to is gone anyway. A manifest with the digest
of every file is written last, so a backup without a manifest is not whole.
"""

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from models.errors import VitfitError
from service.core.data_folder import DataFolder

MANIFEST: Final = "backup.json"
LEFT_OUT: Final = ("uploads", "cache")
"""Folders of unfinished uploads and of local copies."""


class BackupUnusable(VitfitError):
    """A backup that cannot be made or restored."""

    code = "backup-unusable"


def back_up(folder: DataFolder, target: Path) -> int:
    """Copy a data folder to a new folder, and return the number of files. Raises: BackupUnusable."""
    if not folder.database.is_file():
        raise BackupUnusable(
            "The data folder has no vitfit.sqlite. If the server uses PostgreSQL, make the backup of the database with"
            " pg_dump, and copy the data folder or the bucket after it. If not, give the folder of your server."
        )
    if target.exists() and any(target.iterdir()):
        raise BackupUnusable(f"The folder {target} is not empty. Give a new folder for the backup.")
    target.mkdir(parents=True, exist_ok=True)
    with (
        closing(sqlite3.connect(folder.database)) as source,
        closing(sqlite3.connect(target / folder.database.name)) as copy,
    ):
        source.backup(copy)
    for path in sorted(folder.root.rglob("*")):
        place = path.relative_to(folder.root)
        if place.parts[0] in LEFT_OUT or place.name.startswith(folder.database.name) or path.is_symlink():
            continue
        if path.is_file():
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy2(path, target / place)
            except FileNotFoundError:  # deleted meanwhile
                continue
    digests = {str(file.relative_to(target)): _digest(file) for file in sorted(target.rglob("*")) if file.is_file()}
    (target / MANIFEST).write_text(json.dumps({"files": digests}, indent=1))
    return len(digests)


def restore(source: Path, folder: DataFolder) -> int:
    """Copy a backup to a data folder that is empty or missing, and return the number of files.

    Raises: BackupUnusable if the backup is not whole, or if the data folder is not empty.
    """
    manifest = source / MANIFEST
    if not manifest.is_file():
        raise BackupUnusable(f"The folder {source} has no {MANIFEST}, so it is no whole backup. Use another backup.")
    digests: dict[str, str] = json.loads(manifest.read_text())["files"]
    wrong = [name for name, digest in digests.items() if _digest(source / name) != digest]
    if wrong:
        raise BackupUnusable(
            f"{len(wrong)} of {len(digests)} files of the backup are missing or changed, the first one is {wrong[0]!r}."
            " Use another backup."
        )
    if folder.root.exists() and any(folder.root.iterdir()):
        raise BackupUnusable(
            f"The data folder {folder.root} is not empty. Stop the server, move the folder away, and restore again."
        )
    for name in digests:
        place = folder.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, place)
    return len(digests)


def _digest(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
