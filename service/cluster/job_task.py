"""The Ray task that runs a queued job on a node of a cluster.

It does for one job what a server does for its own jobs: claim, worker process, lease, cancel and log.
"""

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
"""The default data folder of a node, with scratch files, latency tables and copies of the bucket's files.

A node can choose another folder with VITFIT_DATA in its own environment.
"""


def run(environment: dict[str, str]) -> bool:
    """Claim a job and run it to the end of this attempt.

    A cancel of the task (KeyboardInterrupt) returns the job to the queue.

    Returns: False if no job could be claimed.
    """
    os.environ.update(environment)
    # Ray limits its tasks; the job runs in a separate process that may use all cores.
    os.environ.pop("OMP_NUM_THREADS", None)
    settings = Settings(data=Path(os.environ.get("VITFIT_DATA", DATA)), workers=1)
    folder = DataFolder(settings.data)
    folder.create()
    store, storage = Store(settings.database), open_storage(settings)
    try:
        retention = Retention(store, folder, storage, None, quota_bytes=None, keep_free_bytes=settings.keep_free_bytes)
        leases = Leases(store, settings.lease_s, settings.max_crashes, settings.most_running)
        return Runner(settings, folder, storage, retention, leases=leases).work()
    finally:
        store.close()
