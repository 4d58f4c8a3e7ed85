"""Fixtures of the service's tests. Jobs run on the public fake engine, and the tests replace no part of vitfit."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import URL, make_url

from service.app import create_app
from service.core.data_folder import DataFolder
from service.core.settings import Settings
from service.db.migrate import upgrade
from service.db.tables import ModelRow, Store
from service.jobs.job_store import Jobs, NewJob
from service.jobs.leases import Leases
from tests.support.postgres import Postgres
from tests.support.running import Server
from tests.support.s3 import S3
from tests.support.small_jobs import Workshop, briefly, data_folder, model_folder

DESCRIPTION: dict[str, Any] = {
    **{"name": "fake", "params": 5, "macs": 10, "image": [3, 32, 32], "classes": 5, "blocks": 1, "heads": 1},
    **{"width": 8, "tokens": 17, "key": "0123456789abcdef"},
}
"""The description of a model that tests write to the database themselves."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL for this test session."""
    if Postgres.programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with Postgres() as postgres:
        yield postgres


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A running S3 server for this test session."""
    with S3() as s3:
        yield s3


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | URL:
    """An empty database, once SQLite and once PostgreSQL."""
    if request.param == "sqlite":
        return tmp_path / "vitfit.sqlite"
    postgres: Postgres = request.getfixturevalue("postgres")
    return make_url(postgres.fresh())


@pytest.fixture
def store(database: Path | URL) -> Iterator[Store]:
    """An empty, migrated database that holds the model `mdl_a`."""
    store = Store(database)
    upgrade(store)
    with store.write() as session:
        session.add(ModelRow(id="mdl_a", owner="", name="fake", description=DESCRIPTION))
    yield store
    store.close()


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store)


@pytest.fixture
def leases(store: Store) -> Leases:
    return Leases(store, lease_s=30.0)


def on(database: Path | URL) -> dict[str, Any]:
    """Return the settings of a server that uses `database`."""
    return {"database_url": database.render_as_string(hide_password=False)} if isinstance(database, URL) else {}


def new_job(**changes: object) -> NewJob:
    """Return a job for `mdl_a`. Keyword arguments go into its request."""
    return NewJob({"model": "mdl_a", "budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": 4, **changes})


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server for tests that leave it unchanged. It runs quick trials, and three jobs at a time."""
    quick = {"VITFIT_FAKE_TRIAL_S": "0.02", "VITFIT_WORKERS": "3", "VITFIT_MAX_CRASHES": "2"}
    server = Server(tmp_path_factory.mktemp("shared") / "data", **quick)
    yield server.start()
    server.end()


@pytest.fixture(scope="session")
def finished_job(server: Server) -> str:
    """A job with four trials that has succeeded."""
    job = server.submit(server.model(), name="mine")
    server.wait(job)
    return job


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may stop, kill and start again.

    It runs slow trials, one job at a time, with leases that do not end during a test.
    """
    server = Server(tmp_path / "data", VITFIT_FAKE_TRIAL_S="0.15", VITFIT_LEASE_S="600")
    yield server.start()
    server.end(signal.SIGKILL)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path)
    folder.create()
    return folder


@pytest.fixture
def web(tmp_path: Path, database: Path | URL) -> Iterator[TestClient]:
    """The application in this process, with a small upload limit. Its runner is active too."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    settings = Settings(
        data=tmp_path / "data", engine="fake", upload_limit_bytes=300_000, allowed_roots=(allowed,), **on(database)
    )
    with TestClient(create_app(settings), "http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    """Make measurements short, because these tests check behaviour and not times."""
    with briefly():
        yield


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A small network, and images that the network itself labels."""
    root = tmp_path_factory.mktemp("workshop")
    model = model_folder(root / "model")
    return Workshop(root, model, data_folder(root / "data", model))


@pytest.fixture
def store_of_web(web: TestClient) -> Store:
    """The database of `web`."""
    found: Store = web.app.state.service.store  # type: ignore[attr-defined]
    return found
