"""The database engines behind service/db/tables.py: a SQLite file, or PostgreSQL by its URL.

Only this module handles the differences between the two.
"""

import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, func, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from service.core.errors import DatabaseUnusable

BUSY_TIMEOUT_MS = 15_000
POSTGRESQL = "postgresql"
DRIVER = "postgresql+psycopg"
CONNECT_S = 5
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""TCP keepalive in seconds. A database server that has vanished silently is noticed after 10 + 3 * 5 = 25 s."""


def engine_of(database: Path | URL) -> Engine:
    """Create the engine for a SQLite file or a PostgreSQL URL. Raises: DatabaseUnusable if its driver is missing."""
    if isinstance(database, Path):
        engine = create_engine(f"sqlite+pysqlite:///{database}", connect_args={"check_same_thread": False})
        _tune_sqlite(engine)
        return engine
    try:
        return create_engine(
            database.set(drivername=DRIVER),
            pool_pre_ping=True,  # replaces connections that a restart of PostgreSQL has broken
            connect_args={"connect_timeout": CONNECT_S, "application_name": "vitfit", **KEEPALIVE},
        )
    except ModuleNotFoundError as error:
        raise DatabaseUnusable(
            f"PostgreSQL needs the package {error.name}, which is not installed. "
            "Install psycopg: pip install 'psycopg[binary]'."
        ) from error


def reading(engine: Engine) -> Engine:
    """Return an engine for reading the same database. Each session sees one snapshot from its start to its end.

    SQLite needs no option for this.
    """
    if engine.dialect.name != POSTGRESQL:
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def writing(engine: Engine) -> Engine:
    """Return an engine for writing to the same database.

    On SQLite, a session takes the write lock at its start. Otherwise it could fail half-way with "database is locked".
    """
    return engine.execution_options(vitfit_write=True)


def one_at_a_time(session: Session, what: str) -> None:
    """Hold the lock named `what` until this session ends. Other sessions that want the same lock wait.

    This does nothing on SQLite, which allows only one writer at a time anyway.
    """
    if _is_postgresql(session):
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"vitfit {what}", 0))))


def clock(session: Session) -> datetime:
    """Return the current time in UTC, by a clock that all servers share.

    With PostgreSQL this is the clock of the database server. With SQLite all servers run on one machine, so it is the
    clock of that machine. Dates of leases and the start of a job's time limit use it, so they do not depend on the
    clock of one server. A lease expires by the monotonic clock of the server that watches it
    (service/core/monotonic_time.py).
    """
    if not _is_postgresql(session):
        return datetime.now(UTC)
    found: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return found.astimezone(UTC)


def is_away(error: DBAPIError) -> bool:
    """Whether the database is unavailable for the moment, so that a retry may succeed.

    PostgreSQL marks a refused connection with FATAL. A retry does not help then, except while PostgreSQL starts, stops
    or recovers.
    """
    if isinstance(error.orig, sqlite3.Error):
        return False
    if error.connection_invalidated:
        return True
    text = str(error.orig)
    return isinstance(error, OperationalError) and ("FATAL" not in text or "the database system is" in text)


def first_line(error: DBAPIError) -> str:
    """Return the first line of the database's error message."""
    return (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == POSTGRESQL


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would send BEGIN too late; `_on_begin` sends it instead
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        _into_wal(connection)
        for pragma in ("foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        is_writing = connection.get_execution_options().get("vitfit_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _into_wal(connection: Any) -> None:
    """Switch the database to WAL mode, in which readers do not block the writer.

    If two processes switch a new database at the same time, SQLite refuses one of them without waiting
    (https://sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode"). This function therefore retries.
    """
    end = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
