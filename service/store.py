"""The rows: models, data sets, jobs, trials, tokens. SQLite by default; nothing here but `_tune_sqlite` is particular to it."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, DateTime, Engine, Float, ForeignKey, Index, String, UniqueConstraint, create_engine, event
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator

BUSY_TIMEOUT_MS = 15_000


def now() -> datetime:
    """The present in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone; SQLite forgets zones, so UTC goes in and UTC comes out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Row(DeclarativeBase):
    """Base of the rows."""

    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it from the class)
        dict[str, Any]: JSON(none_as_null=True),
        datetime: UtcDateTime(),
        str: String(200),
    }


class ModelRow(Row):
    """An uploaded model; its files are `DataFolder.model(id)`."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(default="")
    name: Mapped[str]
    description: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


class DatasetRow(Row):
    """An uploaded data set; its files are `DataFolder.dataset(id)`."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(default="")
    name: Mapped[str]
    description: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


class JobRow(Row):
    """A job. Only service/jobs.py and service/leases.py change `status`, by the one table of transitions."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key", name="uq_jobs_idempotency"),
        Index("ix_jobs_status", "status", "created_at"),
        Index("ix_jobs_queue", "status", "priority", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(default="")
    name: Mapped[str | None]
    request: Mapped[dict[str, Any]]
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id", ondelete="SET NULL"), index=True)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id", ondelete="SET NULL"), index=True)
    parent_job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    deliver_trial: Mapped[int | None]

    idempotency_key: Mapped[str | None]
    request_digest: Mapped[str | None]
    first_answer: Mapped[dict[str, Any] | None]
    request_id: Mapped[str | None]
    """Of the request that made the job."""

    priority: Mapped[int] = mapped_column(default=0)
    time_limit_s: Mapped[float | None] = mapped_column(Float)
    status: Mapped[str] = mapped_column(default="queued")
    stage: Mapped[str | None]
    progress: Mapped[dict[str, Any]]
    guarantee: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]

    attempt: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    crashes: Mapped[int] = mapped_column(default=0)
    crashed_with_trials: Mapped[int] = mapped_column(default=0)

    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    started_at: Mapped[datetime | None]
    cancel_asked_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class TrialRow(Row):
    """A finished trial; `body` is the JSON of search.Trial."""

    __tablename__ = "trials"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class TokenRow(Row):
    """A bearer token; `digest` is the SHA-256 of its secret, `scopes` stand between spaces."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)
    revoked_at: Mapped[datetime | None]


class Store:
    """Sessions on the database. Rows stay readable after their session has ended."""

    def __init__(self, database: Path) -> None:
        self.engine = create_engine(f"sqlite+pysqlite:///{database}", connect_args={"check_same_thread": False})
        _tune_sqlite(self.engine)
        self._writing = self.engine.execution_options(vitfit_write=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading; what it sees does not change meanwhile."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that holds the write lock from its start (no half-way "database is locked") and commits at its end."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


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
        writing = connection.get_execution_options().get("vitfit_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


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
