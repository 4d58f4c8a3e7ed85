"""The runner of a server: claims queued jobs, starts a worker process for each, and watches it until it ends.

A single thread does this a few times per second. All its state is in the database, except for the worker processes.
"""

import contextlib
import errno
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

SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
"""A process cannot be started, because the machine is short of open files, memory or processes."""
SHORT_S = 5.0  # the pause after such an error
POLL_S = 0.2
AWAY_POLL_S = 1.0
COMPLAIN_S = 60.0  # report a full disk at most once per minute: the log may be on the same disk
EXPIRY_POLL_S = 1.0
SWEEP_S = 600.0
LEAVE_S = 2.0  # a worker whose job has ended has this long to exit before it is killed
TERM_AFTER_S = 1.0  # after a cancel, the engine has this long to stop by itself; then it gets SIGTERM
NOT_GONE_ON = "The job could not continue. Its finished trials are kept and can be delivered."
KILL_AFTER_S = 1.5  # this long after the cancel, the worker's whole process group is killed


@dataclass
class Worker:
    """A running worker process."""

    lease: Lease
    process: "subprocess.Popen[bytes]"
    life: int  # write end of a pipe: when it closes, even because this process was killed, the worker exits
    cancel_seen_at: float | None = None  # time.monotonic(), like the next field
    over_seen_at: float | None = None
    asked_to_end: bool = False

    def close(self) -> None:
        """Close the pipe, and kill any process that the worker has left in its process group."""
        signal_group(self.process.pid, signal.SIGKILL)
        os.close(self.life)


def about(lease: Lease) -> contextlib.AbstractContextManager[None]:
    """Add the ids of this job and of the request that created it to every log line inside the `with` block."""
    return logs.about(job_id=lease.job_id, request_id=lease.request_id)


class Runner:
    """Runs queued jobs until `stop` is called."""

    def __init__(
        self, settings: Settings, folder: DataFolder, storage: Storage, retention: Retention, *, leases: Leases
    ) -> None:
        self._settings, self._folder, self._storage = settings, folder, storage
        self._leases, self._retention = leases, retention
        self._workers: list[Worker] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="runner", daemon=True)
        self._expiry_checked_at = self._swept_at = self._complained_at = float("-inf")
        self._short_until = float("-inf")
        """No worker is started before this time, because the machine was short of descriptors, memory or processes."""
        self.waits: str | None = None
        """Why queued jobs cannot be started, such as a lack of disk space; None if nothing prevents it."""

    def start(self) -> None:
        """Requeue the jobs of servers that ran on this machine and have ended, and start the runner thread."""
        for job_id in self._leases.take_back(is_gone):
            with logs.about(job_id=job_id):
                log.info("%s was requeued: the server that ran it has ended", job_id)
        self._thread.start()

    def wake(self) -> None:
        """Make the runner thread look at the database now, because a job was created or canceled."""
        self._wake.set()

    def stop(self) -> None:
        """End the workers and the thread. The jobs return to the queue and continue when a server starts again."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the runner thread is alive."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._tick()
            except Away as away:
                log.warning("no job can be started now: %s", away)
                # Workers could not renew their leases either, so they get time for it before the next expiry check.
                self._expiry_checked_at = time.monotonic() + self._settings.lease_s
                self._stopping.wait(AWAY_POLL_S)
            self._wake.wait(POLL_S)
            self._wake.clear()
        self._let_go()

    def work(self) -> bool:
        """Run one queued job in the caller's thread, to the end of this attempt.

        An interrupt returns the job to the queue. Returns: False if no job was queued.

        Raises: Away when the database does not answer before a job is claimed.
        """
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
        """Do one round of the runner thread. Raises: Away."""
        self._watch_all()
        for step in (self._end_overdue, self._sweep, self._fill):
            self._carefully(step)

    def _watch_all(self) -> None:
        for worker in list(self._workers):
            with about(worker.lease):
                self._carefully(self._watch, worker)

    def _carefully(self, step: Callable[..., None], *arguments: Worker) -> None:
        """Run one step and log its failure, for example because the disk is full.

        A failed step does not prevent the other steps, and it is tried again in the next round. Raises: Away.
        """
        try:
            step(*arguments)
        except Away:
            raise
        except Exception as error:
            if not is_full(error):
                log.exception("a step of the runner failed; the runner continues")
            elif time.monotonic() - self._complained_at > COMPLAIN_S:
                self._complained_at = time.monotonic()
                log.error("the disk is full: %s", error)

    def _end_overdue(self) -> None:
        if time.monotonic() - self._expiry_checked_at < EXPIRY_POLL_S:
            return
        self._expiry_checked_at = time.monotonic()
        for lease in self._leases.expire():
            with about(lease):
                log.warning("%s: its worker has not renewed the lease for %g s", lease.job_id, self._settings.lease_s)
        for job_id in self._leases.fail_overdue():
            with logs.about(job_id=job_id):
                log.warning("%s: the job has exceeded its time limit", job_id)

    def _sweep(self) -> None:
        if time.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = time.monotonic()
            self._retention.sweep()

    def _fill(self) -> None:
        """Start queued jobs while there are free workers and enough disk space."""
        while self._has_means() and len(self._workers) < self._settings.workers and not self._stopping.is_set():
            claimed = self._leases.claim(whoami())
            if claimed is None:
                return
            with about(claimed):
                self._begin(claimed)

    def _has_means(self) -> bool:
        """Return whether a worker can be started now, as far as is known. `waits` says why if it cannot."""
        return time.monotonic() >= self._short_until and self._has_disk()

    def _has_disk(self) -> bool:
        try:
            self._retention.room.check_disk()
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
            if error.errno in SHORT:
                self._wait_for_means(lease, error)
                return
            log.exception("%s: its worker could not be started", lease.job_id)
            why = storage_full(self._folder.root, NOT_GONE_ON) if is_full(error) else None
            self._leases.crash(lease, f"could not be started ({error.strerror or type(error).__name__})", why)

    def _wait_for_means(self, lease: Lease, error: OSError) -> None:
        """Put a job back whose worker cannot be started now, because the machine is short of something."""
        log.error("queued jobs wait, because no process can be started: %s", error.strerror)
        self._leases.give_up(lease)
        self._short_until = time.monotonic() + SHORT_S
        self.waits = (
            f"Queued jobs wait, because the machine cannot start another process ({error.strerror}). Close programs on"
            " it, or raise its limits on processes, memory and open files."
        )

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
        """Kill a worker that has no job any more, unless it exits by itself within `LEAVE_S` seconds.

        Usually such a worker has just stored the end of its job and is about to exit. Otherwise it has lost its lease.
        """
        worker.over_seen_at = worker.over_seen_at or time.monotonic()
        if time.monotonic() - worker.over_seen_at > LEAVE_S:
            log.warning("%s: its worker no longer has the job and is killed", worker.lease.job_id)
            signal_group(worker.process.pid, signal.SIGKILL)

    def _press(self, worker: Worker) -> None:
        """End the worker of a canceled job: wait for the engine to stop, then send SIGTERM, then kill the group."""
        worker.cancel_seen_at = worker.cancel_seen_at or time.monotonic()
        waited_s = time.monotonic() - worker.cancel_seen_at
        if waited_s > KILL_AFTER_S:
            signal_group(worker.process.pid, signal.SIGKILL)
        elif waited_s > TERM_AFTER_S and not worker.asked_to_end:
            worker.asked_to_end = True
            signal_group(worker.process.pid, signal.SIGTERM)

    def _reap(self, worker: Worker, status: int) -> None:
        """Handle the exit of a worker. If the worker has not stored the end of its job, record a crash."""
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        why: VitfitError | None = None
        if status == DISK_FULL:
            how, why = "found the disk full", storage_full(self._folder.root, NOT_GONE_ON)
        elif status == -signal.SIGXCPU:
            why = self._settings.job_limits().reached("cpu")
        with contextlib.suppress(Fenced):  # the usual case: the worker has stored the end of the job
            self._leases.crash(worker.lease, how, why)
            log.warning("%s: its worker %s", worker.lease.job_id, how)
        self._remove(worker)

    def _stop_worker(self, worker: Worker) -> None:
        end_group(worker.process)
        try:
            self._leases.give_up(worker.lease)
        except Fenced:  # the worker has just stored the end of its job
            pass
        except Exception:  # the next server start, or lease expiry, requeues the job
            log.exception("%s: the job could not be returned to the queue", worker.lease.job_id)
        self._remove(worker)

    def _remove(self, worker: Worker) -> None:
        self._workers = [other for other in self._workers if other is not worker]
        worker.close()
        if self._storage.is_shared:
            self._share_log(worker.lease.job_id)

    def _share_log(self, job_id: str) -> None:
        """Copy the log of a job to the shared storage for the other servers.

        A log is not worth a retry: if the storage does not answer, the other servers do not get this log.
        """
        try:
            with self._folder.uploading() as beside:
                shutil.copyfile(self._folder.job(job_id).log, beside / self._folder.job(job_id).log.name)
                self._storage.put(log_key(job_id), beside)
        except (VitfitError, OSError) as error:
            log.warning("%s: its log could not be copied to the shared storage: %s", job_id, error)

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
        log.info("%s: process %d runs it", lease.job_id, process.pid)
        return Worker(lease, process, life)
