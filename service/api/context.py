"""The object that holds all parts of the server. It is created when the server starts, and every route receives it."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Self

from fastapi import Depends, Request

from service.api.access_tokens import Tokens
from service.api.agents import Agents
from service.api.submission import Submissions
from service.core.data_folder import DataFolder
from service.core.hidden_paths import HiddenPaths
from service.core.retry import patiently
from service.core.settings import Settings
from service.db.damage import DamageWatch, check_whole
from service.db.migrate import upgrade
from service.db.tables import Store
from service.jobs.cluster_runner import ClusterRunner
from service.jobs.engine import Catalog, catalog, validate_module
from service.jobs.job_store import Jobs
from service.jobs.leases import Leases
from service.jobs.runner import Runner
from service.jobs.turns import Turns
from service.jobs.validator import Validator
from service.library.library import Library
from service.library.ownership import claim
from service.library.retention import Retention
from service.library.user_devices import DeviceShelf
from service.storage.base import Storage
from service.storage.open_storage import open_storage


def server_version() -> str:
    """Return the version of the installed distribution, or "0" in a checkout that is not installed."""
    try:
        return version("vitfit-server")
    except PackageNotFoundError:
        return "0"


@dataclass(frozen=True)
class Service:
    """The parts of a running server."""

    settings: Settings
    folder: DataFolder
    store: Store
    storage: Storage
    jobs: Jobs
    library: Library
    catalog: Catalog
    devices: DeviceShelf
    tokens: Tokens
    agents: Agents
    validator: Validator
    submissions: Submissions
    retention: Retention
    runner: Runner
    damage: DamageWatch | None = None
    """Only for a SQLite file."""

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Create or upgrade the data folder and the database, and build all parts of the server.

        Raises: OSError if the data folder cannot be written; NewerData, DatabaseUnusable, StorageUnusable, ForeignData,
        Away.
        """
        folder = DataFolder(settings.data)
        folder.create()
        folder.sweep()
        store, storage = _opened(settings)
        jobs, library, engine = Jobs(store, settings.most_unfinished), Library(store, storage), catalog(settings.engine)
        shelf = DeviceShelf(store, folder.devices, folder.tables, engine.devices)
        offered = Catalog(engine.devices if settings.ray_jobs else shelf.all, engine.methods)
        retention = Retention(
            store,
            folder,
            storage,
            settings.keep_days,
            quota_bytes=settings.quota_bytes,
            keep_free_bytes=settings.keep_free_bytes,
        )
        validator = Validator(
            validate_module(settings.engine),
            Turns(settings.checks, settings.checks_per_person),
            settings.check_limits(),
            settings.worker_environment(),
            hidden=HiddenPaths.of(settings),
            space=(folder, retention.room),
        )
        submissions = Submissions(settings, jobs, library, offered, validator=validator)
        runner = (ClusterRunner if settings.ray_jobs else Runner)(
            settings,
            folder,
            storage,
            retention,
            leases=Leases(store, settings.lease_s, settings.max_crashes, settings.most_running),
        )
        tokens, agents = Tokens(store), Agents(folder.devices, settings.most_agents)
        return cls(
            settings,
            folder,
            store,
            storage,
            jobs,
            library,
            offered,
            shelf,
            tokens,
            agents,
            validator,
            submissions,
            retention,
            runner,
            DamageWatch(settings.database) if isinstance(settings.database, Path) else None,
        )

    def start(self) -> None:
        """Start to run jobs, including the unfinished jobs of an earlier server."""
        self.validator.start()
        self.runner.start()

    def close(self) -> None:
        """Stop the workers and close the database. Their jobs continue at the next start."""
        self.validator.close()
        self.runner.stop()
        self.store.close()


def _opened(settings: Settings) -> tuple[Store, Storage]:
    """Open the database and the storage, and check that they are whole, up to date and of one server."""
    if isinstance(settings.database, Path):
        check_whole(settings.database)
    store = Store(settings.database)
    patiently(lambda: upgrade(store), settings.patience_s)
    storage = open_storage(settings)
    patiently(storage.check, settings.patience_s)
    patiently(lambda: claim(store, DataFolder(settings.data), storage), settings.patience_s)
    return store, storage


async def _of(request: Request) -> Service:
    """Return the `Service` of the application.

    The function is async because FastAPI runs a plain function in the thread pool, where it would wait for a free
    thread.
    """
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_of)]
