"""The runner of a server whose jobs run on a Ray cluster.

It starts the dispatcher and restarts it when it exits. Lease expiry works as in `Runner`. The dispatcher
(service/cluster/dispatcher.py) is a separate process, because Ray ends a process that has lost its cluster.
"""

import logging
import os
import subprocess
import time

from service.core.data_folder import waits_file
from service.core.processes import child_environment, end_group, start_child
from service.jobs.runner import Runner

log = logging.getLogger("vitfit.runner")
AGAIN_S = 5.0
"""Shortest time in seconds between two starts of the dispatcher."""
GOODBYE_S = 5.0
"""When the server stops, the dispatcher has this many seconds to return its jobs to the queue."""


class ClusterRunner(Runner):
    """Runs a dispatcher, and no jobs, on this machine."""

    _dispatcher: "subprocess.Popen[bytes] | None" = None
    _life = -1
    _started_at = float("-inf")

    def _fill(self) -> None:
        file = waits_file(self._folder)
        self.waits = file.read_text() if file.exists() else None
        if self._dispatcher is not None and self._dispatcher.poll() is not None:
            log.warning("the dispatcher ended with exit status %d; it is started again", self._dispatcher.returncode)
            self._forget()
        if self._dispatcher is None and time.monotonic() - self._started_at > AGAIN_S and not self._stopping.is_set():
            self._start()

    def _start(self) -> None:
        self._started_at = time.monotonic()
        self._dispatcher, self._life = start_child(
            ["service.cluster.dispatcher", "--data", str(self._folder.root)],
            child_environment(self._settings.worker_environment()),
        )

    def _forget(self) -> None:
        os.close(self._life)
        self._dispatcher = None

    def _let_go(self) -> None:
        if self._dispatcher is not None:
            end_group(self._dispatcher, GOODBYE_S)
            self._forget()
