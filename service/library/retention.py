"""How long finished jobs are kept, and the files that are deleted after them."""

import logging
import shutil
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import delete, select

from service.core import logs
from service.core.data_folder import DataFolder
from service.core.monotonic_time import SteadyCalendar
from service.db.job_states import FINISHED, UNFINISHED
from service.db.tables import DatasetRow, JobRow, ModelRow, RemovalRow, Store, now
from service.library.library import bundle_key
from service.library.room import Room
from service.storage.base import Storage

log = logging.getLogger("vitfit.retention")


class Retention:
    def __init__(
        self,
        store: Store,
        folder: DataFolder,
        storage: Storage,
        keep_days: float | None,
        *,
        quota_bytes: int | None,
        keep_free_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the limits.

        Args:
            store: the database.
            folder: the data folder.
            storage: the storage that holds uploads and finished files.
            keep_days: for how many days a finished job is kept; None: for ever.
            quota_bytes: upper limit for the size of the data folder; None: as much as the disk has.
            keep_free_bytes: disk space that must stay free for running jobs.
            clock: returns seconds of a monotonic clock.
        """
        self._store, self._folder, self._storage = store, folder, storage
        self._keep_days, self._calendar = keep_days, SteadyCalendar(now, clock)
        self.room = Room(folder, quota_bytes, keep_free_bytes, clock)

    def sweep(self) -> list[str]:
        """Delete jobs that ended more than `keep_days` ago, and what is left of jobs that were deleted before.

        Files that the database does not know stay (service/library/sweep.py). This also trims the storage's local
        copies.

        Returns: the ids of the jobs that were deleted because of their age.
        """
        old = [] if self._keep_days is None else self._forget(self._keep_days)
        for job_id in old:
            with logs.about(job_id=job_id):
                log.info("%s was deleted, because it had ended more than %g days ago", job_id, self._keep_days)
        found = {*self._storage.ids("jobs"), *(path.name for path in self._folder.jobs.iterdir())}
        with self._store.read() as session:
            removed = set(session.scalars(select(RemovalRow.job_id)))
            busy = session.execute(
                select(JobRow.model_id, JobRow.dataset_id).where(JobRow.status.in_(UNFINISHED))
            ).all()
        for job_id in found & removed:  # another server may have deleted the job, and only this machine has its folder
            self.forget_files(job_id)
        needed = [(kind, item) for row in busy for kind, item in zip((ModelRow, DatasetRow), row, strict=True) if item]
        self._storage.trim({bundle_key(kind, item) for kind, item in needed})
        return old

    def forget_files(self, job_id: str) -> None:
        """Delete the files of a job whose row is gone: its artifacts and log, and its folder on this machine."""
        self._storage.delete(f"jobs/{job_id}")
        shutil.rmtree(self._folder.job(job_id).root, ignore_errors=True)

    def _forget(self, days: float) -> list[str]:
        over = JobRow.status.in_(FINISHED), JobRow.finished_at < self._calendar.now() - timedelta(days=days)
        with self._store.write() as session:
            found = list(session.scalars(select(JobRow.id).where(*over)))
            session.execute(delete(JobRow).where(JobRow.id.in_(found)))
            session.add_all([RemovalRow(job_id=job_id) for job_id in found])
        return found
