"""The server's side of running jobs: claims queued ones, starts a worker for each, and watches what becomes of it.

One thread does it all, a few times per second; it keeps nothing that the database does not know, except the processes.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from models.errors import VitfitError
from service.core import logs
from service.core.data_folder import DataFolder, log_key
from service.core.disk_space import is_full, storage_full
from service.core.errors import Away, StorageFull
from service.core.processes import DISK_FULL, child_environment, end_group, is_gone, signal_group, start_child, whoami
from service.core.settings import Settings
from service.jobs.journal import Fenced
from service.jobs.leases import Lease, Leases
from service.library.retention import Retention
from service.storage.base import Storage

log = logging.getLogger("vitfit.runner")

POLL_S = 0.2
AWAY_POLL_S = 1.0
COMPLAIN_S = 60.0  # of a full disk, which may be the one that the log is on
EXPIRY_POLL_S = 1.0
SWEEP_S = 600.0
LEAVE_S = 2.0  # a worker whose job is over has so long to end by itself
TERM_AFTER_S = 1.0  # a canceled engine has so long to notice `journal.check()`,
NOT_GONE_ON = "The job could not go on; its finished trials are kept and can be delivered."
KILL_AFTER_S = 1.5  # and then so long (both since the cancel) before its whole process group is killed


@dataclass
class Worker:
    """A running worker process."""

    lease: Lease
    process: "subprocess.Popen[bytes]"
    life: int  # our end of a pipe: the worker ends when it closes, even if this process is killed
    cancel_seen_at: float | None = None  # these two: time.monotonic()
    over_seen_at: float | None = None
    asked_to_end: bool = False

    def close(self) -> None:
        """Release the pipe and kill what the worker may have left behind in its group."""
        signal_group(self.process.pid, signal.SIGKILL)
        os.close(self.life)


def about(lease: Lease) -> contextlib.AbstractContextManager[None]:
    """Lines that are logged inside are about this job and the request that made it."""
    return logs.about(job_id=lease.job_id, request_id=lease.request_id)


class Runner:
    """Runs queued jobs until `stop`."""

    def __init__(
        self, settings: Settings, folder: DataFolder, storage: Storage, retention: Retention, leases: Leases
    ) -> None:
        self._settings, self._folder, self._storage = settings, folder, storage
        self._leases, self._retention = leases, retention
        self._workers: list[Worker] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="runner", daemon=True)
        self._expiry_checked_at = self._swept_at = self._complained_at = float("-inf")
        self.waits: str | None = None
        """Why queued jobs are not started, when it is for want of disk."""

    def start(self) -> None:
        """Take back the jobs of servers of this machine that are gone, and begin."""
        for job_id in self._leases.take_back(is_gone):
            with logs.about(job_id=job_id):
                log.info("%s goes on: the server that ran it is gone", job_id)
        self._thread.start()

    def wake(self) -> None:
        """Look at the database now: there is a new job, or one was canceled."""
        self._wake.set()

    def stop(self) -> None:
        """End the workers; their jobs are queued again and go on at the next start."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether jobs are being run."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._tick()
            except Away as away:
                log.warning("nothing can be started: %s", away)
                # Workers could not renew their leases either: they get the time to do so before anybody's lease runs out.
                self._expiry_checked_at = time.monotonic() + self._settings.lease_s / 2
                self._stopping.wait(AWAY_POLL_S)
            self._wake.wait(POLL_S)
            self._wake.clear()
        self._let_go()

    def work(self) -> bool:
        """One queued job, in the caller's thread, to the end of this attempt; False: there was none. An interrupt gives it back.

        Raises: Away before there is a job."""
        try:
            self._fill()
            found = bool(self._workers)
            while self._workers:
                self._stopping.wait(POLL_S)
                with contextlib.suppress(Away):
                    self._watch_all()
            return found
        finally:
            self._let_go()

    def _let_go(self) -> None:
        for worker in self._workers:
            with about(worker.lease):
                self._stop_worker(worker)

    def _tick(self) -> None:
        """Raises: Away."""
        self._watch_all()
        for step in (self._end_overdue, self._sweep, self._fill):
            self._carefully(step)

    def _watch_all(self) -> None:
        for worker in list(self._workers):
            with about(worker.lease):
                self._carefully(self._watch, worker)

    def _carefully(self, step: Callable[..., None], *arguments: Worker) -> None:
        """One step: what fails, for want of disk perhaps, hinders no other, and may succeed next time. Raises: Away."""
        try:
            step(*arguments)
        except Away:
            raise
        except Exception as error:
            if not is_full(error):
                log.exception("the runner failed and goes on")
            elif time.monotonic() - self._complained_at > COMPLAIN_S:
                self._complained_at = time.monotonic()
                log.error("the disk is full: %s", error)

    def _end_overdue(self) -> None:
        if time.monotonic() - self._expiry_checked_at < EXPIRY_POLL_S:
            return
        self._expiry_checked_at = time.monotonic()
        for lease in self._leases.expire():
            with about(lease):
                log.warning("%s: its worker was not heard of for %g s", lease.job_id, self._settings.lease_s)
        for job_id in self._leases.fail_overdue():
            with logs.about(job_id=job_id):
                log.warning("%s: its time is over", job_id)

    def _sweep(self) -> None:
        if time.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = time.monotonic()
            self._retention.sweep()

    def _fill(self) -> None:
        """Start jobs while there are workers and disk for them."""
        while self._has_disk() and len(self._workers) < self._settings.workers and not self._stopping.is_set():
            claimed = self._leases.claim(whoami())
            if claimed is None:
                return
            with about(claimed):
                self._begin(claimed)

    def _has_disk(self) -> bool:
        try:
            self._retention.check_disk()
        except StorageFull as error:
            if self.waits is None:
                log.error("queued jobs wait: %s", error)
            self.waits = error.detail
            return False
        self.waits = None
        return True

    def _begin(self, lease: Lease) -> None:
        try:
            self._workers.append(self._spawn(lease))
        except OSError as error:
            log.exception("%s: no worker could be started", lease.job_id)
            why = storage_full(self._folder.root, NOT_GONE_ON) if is_full(error) else None
            self._leases.crash(lease, f"could not be started ({error})", why)

    def _watch(self, worker: Worker) -> None:
        status = worker.process.poll()
        if status is not None:
            self._reap(worker, status)
            return
        try:
            job = self._leases.job(worker.lease)
        except Fenced:
            self._on_lost_lease(worker)
            return
        if job.status == "canceling":
            self._press(worker)

    def _on_lost_lease(self, worker: Worker) -> None:
        """The job is over, or another's. The usual worker has just stored the job's end and is about to leave."""
        worker.over_seen_at = worker.over_seen_at or time.monotonic()
        if time.monotonic() - worker.over_seen_at > LEAVE_S:
            log.warning("%s: its worker, which has no job any more, is killed", worker.lease.job_id)
            signal_group(worker.process.pid, signal.SIGKILL)

    def _press(self, worker: Worker) -> None:
        """A canceled job: wait for the engine to notice, then ask the process, then kill the group."""
        worker.cancel_seen_at = worker.cancel_seen_at or time.monotonic()
        waited_s = time.monotonic() - worker.cancel_seen_at
        if waited_s > KILL_AFTER_S:
            signal_group(worker.process.pid, signal.SIGKILL)
        elif waited_s > TERM_AFTER_S and not worker.asked_to_end:
            worker.asked_to_end = True
            signal_group(worker.process.pid, signal.SIGTERM)

    def _reap(self, worker: Worker, status: int) -> None:
        """Store the end of a worker that has not done so itself."""
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        why = None
        if status == DISK_FULL:
            how, why = "found the disk full", storage_full(self._folder.root, NOT_GONE_ON)
        with contextlib.suppress(Fenced):  # the usual case: the worker stored the job's end
            self._leases.crash(worker.lease, how, why)
            log.warning("%s: its worker %s", worker.lease.job_id, how)
        self._remove(worker)

    def _stop_worker(self, worker: Worker) -> None:
        end_group(worker.process)
        try:
            self._leases.give_up(worker.lease)
        except Fenced:  # it has just stored the job's end
            pass
        except Exception:  # the next start, or the end of the lease, takes the job back
            log.exception("%s: could not be given back", worker.lease.job_id)
        self._remove(worker)

    def _remove(self, worker: Worker) -> None:
        self._workers = [other for other in self._workers if other is not worker]
        worker.close()
        if self._storage.is_shared:
            self._share_log(worker.lease.job_id)

    def _share_log(self, job_id: str) -> None:
        """For the other servers. A log is worth no wait: they do without where the storage does not answer."""
        try:
            with self._folder.uploading() as beside:
                shutil.copyfile(self._folder.job(job_id).log, beside / self._folder.job(job_id).log.name)
                self._storage.put(log_key(job_id), beside)
        except (VitfitError, OSError) as error:
            log.warning("%s: its log stays on this machine: %s", job_id, error)

    def _spawn(self, lease: Lease) -> Worker:
        folder = self._folder.job(lease.job_id)
        folder.create()
        arguments = [
            "service.jobs.worker",
            "--data",
            str(self._folder.root),
            "--job",
            lease.job_id,
            "--fence",
            str(lease.fence),
        ]
        with folder.log.open("ab") as log_file:
            process, life = start_child(arguments, child_environment(self._settings.worker_environment()), log_file)
        log.info("%s: process %d works on it", lease.job_id, process.pid)
        return Worker(lease, process, life)
