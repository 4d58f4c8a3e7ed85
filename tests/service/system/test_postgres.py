"""Tests of what only PostgreSQL does.

Many writers work at the same time. The database has its own clock, refuses some work and may go away.
"""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from sqlalchemy import URL, make_url, text

from service.app import create_app
from service.core.errors import DatabaseAway, DatabaseUnusable
from service.core.retry import patiently
from service.core.settings import Settings
from service.db.engine import one_at_a_time
from service.db.migrate import upgrade
from service.db.tables import Store
from service.jobs.job_store import Jobs
from service.jobs.leases import Lease, Leases
from tests.service.conftest import new_job
from tests.support.postgres import Postgres
from tests.support.rest import problem
from tests.support.running import Server


@pytest.fixture
def url(postgres: Postgres) -> str:
    """The URL of an empty database."""
    return postgres.fresh()


@pytest.fixture
def database(url: str) -> URL:
    return make_url(url)


def test_claimers_at_once_keep_the_limit_of_a_person(store: Store, jobs: Jobs) -> None:
    for _ in range(16):
        jobs.create(new_job())
    ready, claimed = threading.Barrier(8), list[Lease]()

    def run() -> None:
        leases = Leases(store, lease_s=30.0, most_running=3)
        with store.read() as session:  # connect before the common start
            session.execute(text("SELECT 1"))
        ready.wait()
        claimed.extend(lease for _ in range(3) if (lease := leases.claim("server")))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({lease.job_id for lease in claimed}) == len(claimed) == 3


def test_a_job_that_somebody_else_is_changing_does_not_hold_up_the_queue(
    store: Store, jobs: Jobs, leases: Leases
) -> None:
    first, second = (jobs.create(new_job()).id for _ in range(2))
    with store.write() as session:
        session.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": first})
        lease = leases.claim("server")
    assert lease is not None and lease.job_id == second


def test_an_idle_server_waits_for_nobody(store: Store, leases: Leases) -> None:
    asked = threading.Thread(target=leases.claim, args=("idle",))
    with store.write() as session:
        one_at_a_time(session, "claim")
        asked.start()
        asked.join(10)
        waits = asked.is_alive()
    asked.join()
    assert not waits


def test_a_server_whose_clock_is_fast_takes_no_job_from_another(
    store: Store, jobs: Jobs, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.create(new_job(time_limit_s=60.0))
    lease = leases.claim("server")
    assert lease is not None

    class Fast(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(hours=1)

    for module in ("service.db.tables", "service.db.engine", "service.jobs.leases"):
        monkeypatch.setattr(f"{module}.datetime", Fast)
    assert (leases.expire(), leases.fail_overdue()) == ([], [])
    leases.heartbeat(lease)
    monkeypatch.undo()
    expires = jobs.get(job.id).lease_expires_at
    assert expires is not None and expires < datetime.now(UTC) + timedelta(minutes=30)


def test_a_trial_whose_answer_was_lost_is_kept_once(jobs: Jobs, leases: Leases) -> None:
    jobs.create(new_job())
    lease = leases.claim("server")
    assert lease is not None
    leases.record(lease, {"number": 0, "score": -0.5})
    leases.record(lease, {"number": 0, "score": -0.5}, repeated=True)
    with pytest.raises(ValueError, match="recorded before"):
        leases.record(lease, {"number": 0, "score": -0.4}, repeated=True)
    assert leases.trials(lease.job_id) == [{"number": 0, "score": -0.5}]


def test_names_with_nul_and_ids_with_nul_are_no_mistake_of_the_server(web: TestClient) -> None:
    problem(web.get("/v1/jobs/job_%00"), 404, "not-found")
    problem(web.get("/v1/jobs/job_a/trials?page_token=%00"), 404, "not-found")


def test_a_missing_database_is_named_and_no_password_is_shown(postgres: Postgres) -> None:
    url = make_url(postgres.url("nowhere")).set(password="secret")
    with pytest.raises(DatabaseUnusable, match='database "nowhere" does not exist') as caught:
        upgrade(Store(url))
    assert "secret" not in str(caught.value) and "nowhere" in caught.value.detail


def test_a_user_without_rights_is_told_so_before_any_work(postgres: Postgres) -> None:
    name = postgres.fresh_database()
    postgres.run_sql(f"CREATE ROLE {name}_reader LOGIN")
    reader = make_url(postgres.url(name, f"{name}_reader"))
    with pytest.raises(DatabaseUnusable, match="permission denied for schema public"):
        upgrade(Store(reader))
    upgrade(Store(make_url(postgres.url(name))))
    postgres.run_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}_reader", name)
    with pytest.raises(DatabaseUnusable, match="lacks DELETE on datasets, DELETE on identity, DELETE on jobs"):
        upgrade(Store(reader))


@pytest.mark.parametrize("wrong", ["mysql://root@host/db", "vitfit.sqlite", "postgresql:/host"])
def test_a_url_of_something_else_is_refused_without_being_repeated(wrong: str) -> None:
    with pytest.raises(ValidationError, match="postgresql://user:password@host") as caught:
        Settings(database_url=wrong)
    assert wrong not in str(caught.value)


@pytest.fixture
def outage(postgres: Postgres) -> Iterator[Postgres]:
    """A PostgreSQL that a test may stop. It runs again afterwards."""
    yield postgres
    if not postgres.runs:
        postgres.start()


def test_a_server_waits_at_its_start_for_a_database_that_is_not_up_yet(outage: Postgres, url: str) -> None:
    store = Store(make_url(url))
    outage.stop()
    with pytest.raises(DatabaseAway, match="does not answer"):
        patiently(lambda: upgrade(store), 0)
    starter = threading.Timer(1.0, outage.start)
    starter.start()
    patiently(lambda: upgrade(store), 60)
    starter.join()


def test_while_the_database_is_away_requests_are_asked_to_come_again(
    outage: Postgres, url: str, tmp_path: Path
) -> None:
    settings = Settings(data=tmp_path / "data", engine="fake", database_url=url)
    with TestClient(create_app(settings), "http://127.0.0.1", raise_server_exceptions=False) as web:
        assert web.get("/healthz").status_code == 200
        outage.stop()
        for path in ("/healthz", "/v1/jobs"):
            answer = web.get(path)
            problem(answer, 503, "database-away")
            assert answer.headers["Retry-After"] == "5"
        assert web.get("/livez").status_code == 204, "starting the server again would mend nothing"
        outage.start()
        assert web.get("/v1/jobs").status_code == 200
        assert web.app.state.service.runner.alive  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_running_job_outlives_its_database_going_away(outage: Postgres, url: str, tmp_path: Path) -> None:
    """The database is away for longer than the lease. The worker waits, and no trial is evaluated again."""
    environment = {"VITFIT_DATABASE_URL": url, "VITFIT_FAKE_TRIAL_S": "0.3", "VITFIT_LEASE_S": "4"}
    server = Server(tmp_path / "data", **environment).start()
    try:
        job = server.submit(server.model(), trials=12)
        server.wait_for_trials(job, 2)
        outage.stop()
        time.sleep(5)
        outage.start()
        done = server.wait(job)
        assert (done["status"], done["attempt"]) == ("succeeded", 1)
        assert [number for number, _ in server.evaluated(job)] == server.trials(job) == list(range(12))
    finally:
        assert server.end() == 0
