"""The engines behind service/db/tables.py: a SQLite file, or PostgreSQL by its URL. Only this file knows how they differ."""

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
"""A server that vanished without a word is noticed after 25 s."""


def engine_of(database: Path | URL) -> Engine:
    """Raises: DatabaseUnusable when the URL's driver is not installed."""
    if isinstance(database, Path):
        engine = create_engine(f"sqlite+pysqlite:///{database}", connect_args={"check_same_thread": False})
        _tune_sqlite(engine)
        return engine
    try:
        return create_engine(
            database.set(drivername=DRIVER),
            pool_pre_ping=True,  # connections from before a restart of PostgreSQL are replaced, not used
            connect_args={"connect_timeout": CONNECT_S, "application_name": "vitfit", **KEEPALIVE},
        )
    except ModuleNotFoundError as error:
        raise DatabaseUnusable(
            f"PostgreSQL needs the package {error.name}: pip install 'vitfit-server[postgres]'."
        ) from error


def reading(engine: Engine) -> Engine:
    """The same database; what a session sees does not change while it lasts (SQLite does so by itself)."""
    if engine.dialect.name != POSTGRESQL:
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def writing(engine: Engine) -> Engine:
    """The same database; on SQLite a session holds the write lock from its start (no half-way "database is locked")."""
    return engine.execution_options(vitfit_write=True)


def one_at_a_time(session: Session, what: str) -> None:
    """Others who ask for the same wait until this session ends. SQLite's writers are one at a time already."""
    if _is_postgresql(session):
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"vitfit {what}", 0))))


def clock(session: Session) -> datetime:
    """The present in UTC by the one clock that all servers share: PostgreSQL's. SQLite's servers are on one machine.

    Leases and time limits are judged by it, so a server whose own clock is wrong takes no job from another.
    """
    if not _is_postgresql(session):
        return datetime.now(UTC)
    found: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return found.astimezone(UTC)


def is_away(error: DBAPIError) -> bool:
    """Whether the database did not answer, and may answer soon. A refusal of PostgreSQL begins with FATAL and is one for good,
    except while it starts, stops or recovers."""
    if isinstance(error.orig, sqlite3.Error):
        return False
    if error.connection_invalidated:
        return True
    text = str(error.orig)
    return isinstance(error, OperationalError) and ("FATAL" not in text or "the database system is" in text)


def first_line(error: DBAPIError) -> str:
    """What the database said, short."""
    return (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == POSTGRESQL


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own transactions begin too late; ours begin below
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        _into_wal(connection)
        for pragma in ("foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        is_writing = connection.get_execution_options().get("vitfit_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _into_wal(connection: Any) -> None:
    """Readers and one writer side by side. Of two that change a fresh database's mode at once, SQLite refuses one without
    waiting (https://sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode"), so we wait."""
    end = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
