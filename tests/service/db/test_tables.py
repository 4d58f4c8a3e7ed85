"""Tests of the migrations, and of the data that must survive on disk."""

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, select, text

from service.db.migrate import NewerData, upgrade
from service.db.tables import JobRow, Row, Store
from service.jobs.job_store import Jobs
from service.jobs.leases import Leases
from tests.service.conftest import new_job


def test_the_migrations_make_exactly_the_tables_of_the_code(store: Store) -> None:
    with store.read() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Row.metadata) == []


def test_upgrading_again_changes_nothing(store: Store, jobs: Jobs) -> None:
    job = jobs.create(new_job())
    upgrade(store)
    assert jobs.get(job.id).status == "queued"


def test_a_database_of_a_newer_version_is_refused_and_left_alone(store: Store) -> None:
    with store.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NewerData, match="a newer version wrote it"):
        upgrade(store)
    with store.read() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_sqlite_is_tuned_for_several_processes(store: Store) -> None:
    with store.read() as session:
        found = [session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "foreign_keys", "busy_timeout")]
    assert found == ["wal", 1, 15_000]


def test_two_servers_may_upgrade_a_fresh_database_at_once(database: Path | URL) -> None:
    stores = [Store(database) for _ in range(2)]
    failures: list[BaseException] = []

    def run(store: Store) -> None:
        try:
            upgrade(store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_eight_claimers_share_twenty_jobs_without_a_double(database: Path | URL, store: Store, jobs: Jobs) -> None:
    ids = [jobs.create(new_job()).id for _ in range(20)]
    claimed: list[str] = []

    def run() -> None:
        mine = Store(database)
        leases = Leases(mine, lease_s=30.0)
        while lease := leases.claim("server"):
            claimed.append(lease.job_id)
        mine.close()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(ids)


def test_times_come_back_in_utc(store: Store, jobs: Jobs) -> None:
    job = jobs.create(new_job())
    with store.read() as session:
        found = session.scalar(select(JobRow.created_at).where(JobRow.id == job.id))
    assert found is not None and found == job.created_at and str(found.tzinfo) == "UTC"
