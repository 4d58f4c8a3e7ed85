"""Damage of a SQLite file: found when the server starts, and by /healthz."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from service.core.errors import DatabaseUnusable

LOOK_S: Final = 300.0
"""/healthz reads the whole file at most once in this many seconds."""


def check_whole(database: Path) -> None:
    """Read all pages of a SQLite file. A file that does not exist is not damaged.

    Raises: DatabaseUnusable for a damaged file.
    """
    if not database.is_file() or database.stat().st_size == 0:
        return
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=15)) as opened:
            found = opened.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError:  # it is locked, or cannot be opened: the server says so in its own words
        return
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise DatabaseUnusable(
            f"The database file {database.name} is damaged ({found}). Nothing was changed. Restore it from a backup"
            " with `vitfit restore`, or repair it with SQLite's command .recover."
        )


class DamageWatch:
    """Looks at a database file from time to time."""

    def __init__(self, database: Path) -> None:
        self._database, self._at, self._found = database, time.monotonic(), ""

    def found(self) -> str:
        """Return what is wrong with the file, or an empty text. The look can be as old as LOOK_S."""
        if time.monotonic() - self._at > LOOK_S:
            self._at = time.monotonic()
            try:
                check_whole(self._database)
                self._found = ""
            except DatabaseUnusable as error:
                self._found = error.detail
        return self._found
