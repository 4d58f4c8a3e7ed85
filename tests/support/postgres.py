"""A PostgreSQL for the tests.

It uses a Unix socket in a temporary folder and runs as an unprivileged user. It is removed at the end.
"""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

USER = "vitfit"
SETTINGS = "-c fsync=off -c listen_addresses= -c max_connections=200"
"""Durability is off, because the tests do not check it and it takes most of their time."""


class Postgres:
    """A PostgreSQL that runs inside a `with` block. A test may stop and start it there."""

    @staticmethod
    def programs() -> Path | None:
        """Return the folder with initdb and pg_ctl, or None if PostgreSQL is not installed."""
        newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: float(path.parts[-3]))
        found = newest[-1] if newest else shutil.which("pg_ctl")
        return Path(found).parent if found else None

    def __enter__(self) -> Self:
        self._root = Path(tempfile.mkdtemp(prefix="vitfit-pg-"))
        self._numbers = itertools.count()
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(self._root, nobody.pw_uid, nobody.pw_gid)
        self._run("initdb", "--username", USER, "--auth", "trust", "--encoding", "UTF8", "--no-sync")
        self.runs = False
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.runs:
            self.stop("immediate")
        shutil.rmtree(self._root)

    def start(self) -> None:
        log = str(self._root / "log")
        self._run("pg_ctl", "start", "--wait", "--log", log, "--options", f"{SETTINGS} -k {self._root}")
        self.runs = True

    def stop(self, mode: str = "fast") -> None:
        """Stop the server. This breaks off every connection."""
        self._run("pg_ctl", "stop", "--wait", "--mode", mode)
        self.runs = False

    def url(self, database: str, user: str = USER) -> str:
        return f"postgresql://{user}@/{database}?host={self._root}"

    def fresh(self) -> str:
        """Return a URL with new, empty tables.

        They are in a new schema, because a schema is made much faster than a database.
        """
        name = f"vitfit{next(self._numbers)}"
        self.run_sql(f"CREATE SCHEMA {name}")
        return (
            # The timeout makes sure that no test waits for ever for a lock.
            f"{self.url('postgres')}&options=-csearch_path%3D{name}%20-clock_timeout%3D20s"
        )

    def fresh_database(self) -> str:
        """Create an empty database, and return its name."""
        name = f"vitfit{next(self._numbers)}"
        self.run_sql(f"CREATE DATABASE {name}")
        return name

    def run_sql(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the owner of everything."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def _run(self, program: str, *arguments: str) -> None:
        programs = self.programs()
        assert programs is not None
        command = [str(programs / program), "--pgdata", str(self._root / "data"), *arguments]
        as_nobody: dict[str, Any] = (
            {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        )
        done = subprocess.run(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            timeout=60,
            text=True,
            **as_nobody,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
