"""A queued job on a node of a cluster, seen through as a server does with its own: claim, worker, lease, cancel, log."""

import os
import tempfile
from pathlib import Path

from service.core.data_folder import DataFolder
from service.core.settings import Settings
from service.db.tables import Store
from service.jobs.leases import Leases
from service.jobs.runner import Runner
from service.library.retention import Retention
from service.storage.open_storage import open_storage

DATA = Path(tempfile.gettempdir()) / "vitfit-node"
"""Scratch, latency tables and copies of the bucket's files, unless the node's own VITFIT_DATA says where."""


def run(environment: dict[str, str]) -> bool:
    """Claim a job and run it to the end of this attempt; False: none was queued any more. A cancel of the task
    (KeyboardInterrupt) gives the job back to the queue."""
    os.environ.update(environment)
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's: the job is a process of its own, with the threads of the machine
    settings = Settings(data=Path(os.environ.get("VITFIT_DATA", DATA)), workers=1)
    folder = DataFolder(settings.data)
    folder.create()
    store, storage = Store(settings.database), open_storage(settings)
    try:
        retention = Retention(store, folder, storage, None, None, settings.keep_free_bytes)
        leases = Leases(store, settings.lease_s, settings.max_crashes, settings.most_running)
        return Runner(settings, folder, storage, retention, leases).work()
    finally:
        store.close()
