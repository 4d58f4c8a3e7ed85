"""The tables (models, data sets, jobs, trials, access tokens) and the sessions on them.

The differences between SQLite and PostgreSQL are in service/db/engine.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, URL, DateTime, Float, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator

from service.core.errors import DatabaseAway
from service.db.engine import engine_of, first_line, is_away, reading, writing


def now() -> datetime:
    """Return the current time in UTC, by the clock of this machine.

    Use `service.db.engine.clock` for times that several servers compare.
    """
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A time with a time zone. SQLite does not store zones, so values are stored and returned in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(TypeDecorator[str]):
    """A short text. Users may send NUL characters, which PostgreSQL cannot store, so each one becomes U+FFFD."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


class Row(DeclarativeBase):
    """The base class of all tables."""

    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it from the class)
        dict[str, Any]: JSON(none_as_null=True),
        datetime: UtcDateTime(),
        str: Words(200),
    }


class ModelRow(Row):
    """An uploaded model. Its files are stored under the key `models/ID`."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(default="")
    name: Mapped[str]
    description: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


class DatasetRow(Row):
    """An uploaded data set. Its files are stored under the key `datasets/ID`."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(default="")
    name: Mapped[str]
    description: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


class IdentityRow(Row):
    """The id of this database, in its only row. The storage carries it too (service/library/ownership.py)."""

    __tablename__ = "identity"

    id: Mapped[str] = mapped_column(primary_key=True)


class RemovalRow(Row):
    """A job that was deleted. Each server deletes what it still finds of it, and never a folder that has no row.

    The rows stay, because nobody knows which machines have files of a job.
    """

    __tablename__ = "removals"

    job_id: Mapped[str] = mapped_column(primary_key=True)


class JobRow(Row):
    """A job. Only service/jobs/job_store.py and service/jobs/leases.py change `status`, with `job_states.move`."""

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
    """The id of the HTTP request that created the job."""

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
    """A finished trial. `body` is the JSON form of `search.loop.trial.Trial`."""

    __tablename__ = "trials"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class TokenRow(Row):
    """An access token. `digest` is the SHA-256 of its secret; `scopes` is a list separated by spaces."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)
    revoked_at: Mapped[datetime | None]


class Store:
    """Opens sessions on the database. Rows stay readable after their session has ended.

    Sessions for reading and for writing raise `DatabaseAway` when the database does not answer.
    """

    def __init__(self, database: Path | URL) -> None:
        """Prepare the engines; no connection is opened yet.

        Args:
            database: the path of a SQLite file, or the URL of a PostgreSQL database.

        Raises: DatabaseUnusable when the driver is not installed.
        """
        self.engine = engine_of(database)
        self._reading, self._writing = reading(self.engine), writing(self.engine)

    @property
    def name(self) -> str:
        """The URL of the database without its password, for messages."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session for reading. It sees one unchanging snapshot of the database."""
        with self._answering(), Session(self._reading, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session for writing, which commits at its end.

        SQLite allows one writing session at a time. On PostgreSQL several may run at once: lock each row that you will
        change when you read it, and use `one_at_a_time` for conditions that involve several rows.
        """
        with self._answering(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if not is_away(error):
                raise
            raise DatabaseAway(
                f"The database {self.name} does not answer ({first_line(error)}). Try again in a moment."
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
