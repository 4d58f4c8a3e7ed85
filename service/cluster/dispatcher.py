"""The dispatcher, which hands queued jobs to a Ray cluster: `python -m service.cluster.dispatcher --data DIR`.

A server starts it and restarts it when it exits (service/jobs/cluster_runner.py). While jobs are queued it submits
Ray tasks, at most as many as the setting `workers` allows. A node runs as many of these tasks at a time as it has
slots. A task claims its job only when it has a slot (service/cluster/job_task.py), so no lease runs while the task
waits. If a task is lost, the lease of its job expires and the job is requeued, as for any lost worker. Ray itself
does not retry the task, because two runs of one claim could not be told apart.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from models.atomic_write import write_whole
from service.cluster import node
from service.cluster.ray_cluster import connected
from service.core import logs
from service.core.data_folder import DataFolder, waits_file
from service.core.errors import Away, ClusterUnavailable
from service.core.settings import PREFIX, Settings
from service.db.tables import Store
from service.jobs.leases import Leases
from service.jobs.worker import die_with_parent

log = logging.getLogger("vitfit.dispatcher")
PLACE = "vitfit_jobs"
"""The Ray resource for job slots.

A node that may run two jobs at a time offers two slots: ray start --resources '{"vitfit_jobs": 2}'.
"""
POLL_S, IDLE_S, GOODBYE_S = 0.2, 2.0, 4.0
"""Times in seconds.

POLL_S: between two looks at the queue. IDLE_S: pause after a task that found no job to claim, for example because the
owner already runs the maximum number of jobs. GOODBYE_S: wait for the canceled tasks when the dispatcher stops.
"""
BUCKET = "AWS_"
"""Prefix of the environment variables with the endpoint and credentials of the bucket, which the nodes need too."""


class Dispatcher:
    def __init__(self, settings: Settings, leases: Leases) -> None:
        """Connect to the cluster that the settings name. Raises: ClusterUnavailable."""
        assert settings.ray is not None
        self._ray = connected(settings.ray, lambda: None)
        self._ray.cloudpickle.register_pickle_by_value(node)
        self._leases, self._most = leases, settings.workers
        self._environment = environment(settings, self._ray.get_runtime_context().gcs_address)
        self._task = self._ray.remote(node.job).options(
            num_cpus=0, resources={PLACE: 1}, max_retries=0, name="vitfit-job"
        )
        self._expected, self._running, self._rest_until = node.versions(), list[Any](), float("-inf")

    def step(self) -> str | None:
        """Handle the tasks that have ended, and submit at most one new task.

        Returns: why queued jobs wait, if no node offers slots for jobs; otherwise None.
        """
        self._collect()
        queued = self._leases.queued()
        if not queued:
            return None
        if not self._ray.cluster_resources().get(PLACE):
            return (
                f"Queued jobs wait, because no node of the Ray cluster offers {PLACE}. Start such a node: "
                f"ray start --address=HEAD:6379 --resources '{{\"{PLACE}\": 1}}'."
            )
        if len(self._running) < self._most and time.monotonic() > self._rest_until:
            self._running.append(self._task.remote(self._expected, self._environment))
        return None

    def _collect(self) -> None:
        """Handle the results of the tasks that have ended: log failures, and pause after a task that ran no job."""
        done, self._running = (
            self._ray.wait(self._running, num_returns=len(self._running), timeout=0) if self._running else ([], [])
        )
        for reference in done:
            try:
                found = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                log.warning(
                    "a job was lost with its node or process (%s); it returns to the queue when its lease expires",
                    type(error).__name__,
                )
                continue
            if isinstance(found, list):
                log.error(
                    "a node cannot run jobs, because it has other versions: %s. "
                    "Install the same versions on all nodes (requirements.txt)",
                    ", ".join(found),
                )
            if found is not True:
                self._rest_until = time.monotonic() + IDLE_S

    def stop(self) -> None:
        """Cancel the running tasks, which return their jobs to the queue."""
        for reference in self._running:
            self._ray.cancel(reference)
        if self._running:
            self._ray.wait(self._running, num_returns=len(self._running), timeout=GOODBYE_S)


def environment(settings: Settings, cluster: str) -> dict[str, str]:
    """Return the environment variables for a job's process on a node.

    They hold the server's settings, the address of the cluster and the access to the bucket. The data folder is
    missing, because each node has its own.
    """
    found = {name: value for name, value in os.environ.items() if name.startswith(BUCKET)}
    found |= settings.worker_environment() | {f"{PREFIX}RAY": cluster}
    found.pop(f"{PREFIX}DEVICES", None)  # a folder on the server's machine
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="service.cluster.dispatcher", description="Hands queued jobs to a Ray cluster."
    )
    parser.add_argument("--data", type=Path, required=True, help="data folder of the server")
    parser.add_argument("--parent-pipe", type=int, help="file descriptor that closes when the server dies")
    options = parser.parse_args(arguments)
    settings = Settings(data=options.data)
    logs.set_up(settings.log_format)
    if options.parent_pipe is not None:
        threading.Thread(target=die_with_parent, args=(options.parent_pipe,), daemon=True).start()
    stopping = threading.Event()
    file, store = waits_file(DataFolder(settings.data)), Store(settings.database)
    try:
        dispatcher = Dispatcher(settings, Leases(store, settings.lease_s))
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())  # after Ray has set its own handler
        _dispatch(dispatcher, file, stopping)
        dispatcher.stop()
    except ClusterUnavailable as error:
        say(file, f"Queued jobs wait: {error.detail}")
        sys.exit(1)
    finally:
        store.close()


def _dispatch(dispatcher: Dispatcher, file: Path, stopping: threading.Event) -> None:
    while not stopping.wait(POLL_S):
        try:
            say(file, dispatcher.step())
        except Away as away:
            log.warning("no job can be given to the cluster now: %s", away)


def say(file: Path, why: str | None) -> None:
    """Write to `file` why queued jobs wait, for the server's /healthz. Delete the file if `why` is None."""
    if why is None:
        file.unlink(missing_ok=True)
    elif not file.exists() or file.read_text() != why:
        log.error("%s", why)
        write_whole(file, why)


if __name__ == "__main__":
    main()
