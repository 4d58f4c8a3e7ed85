"""Fixtures of the service's tests. Jobs run on the public fake engine; nothing of ours is mocked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.jobs import Jobs, NewJob
from service.leases import Leases
from service.schema import upgrade
from service.store import ModelRow, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty, migrated database that knows the model `mdl_a`."""
    store = Store(tmp_path / "vitfit.sqlite")
    upgrade(store)
    with store.write() as session:
        session.add(ModelRow(id="mdl_a", owner="", name="fake", description={}))
    yield store
    store.close()


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store)


@pytest.fixture
def leases(store: Store) -> Leases:
    return Leases(store, lease_s=30.0)


def new_job(**changes: object) -> NewJob:
    """A job for `mdl_a`; keyword arguments go into its request."""
    return NewJob({"model": "mdl_a", "budgets": [{"metric": "macs_keep", "limit": 0.6}], "trials": 4, **changes})
