"""How long finished jobs stay, and how much everything together may take."""

import logging
import os
import shutil
import time
from datetime import timedelta

from sqlalchemy import delete, select

from service import logs
from service.errors import StorageFull
from service.jobs import FINISHED
from service.paths import DataFolder
from service.store import JobRow, Store, now

log = logging.getLogger("vitfit.retention")
WEIGH_S = 30.0
"""The folder is measured at most so often."""


class Retention:
    def __init__(self, store: Store, folder: DataFolder, keep_days: float | None, quota_bytes: int | None) -> None:
        """None: for ever; as much as the disk has."""
        self._store, self._folder = store, folder
        self._keep_days, self._quota = keep_days, quota_bytes
        self._weighed: tuple[float, int] | None = None

    def sweep(self) -> list[str]:
        """Deletes jobs that ended longer ago than they are kept, and folders of jobs that nobody knows. Names the jobs."""
        old = [] if self._keep_days is None else self._forget(self._keep_days)
        for job_id in old:
            with logs.about(job_id=job_id):
                log.info("%s was kept for %g days", job_id, self._keep_days)
        folders = list(self._folder.jobs.iterdir())  # before the rows: another server's newest job has its row by then
        with self._store.read() as session:
            known = set(session.scalars(select(JobRow.id)))
        for folder in folders:
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        return old

    def _forget(self, days: float) -> list[str]:
        over = JobRow.status.in_(FINISHED), JobRow.finished_at < now() - timedelta(days=days)
        with self._store.write() as session:
            found = list(session.scalars(select(JobRow.id).where(*over)))
            session.execute(delete(JobRow).where(JobRow.id.in_(found)))
        return found

    def check_room(self, more: int = 0) -> None:
        """Raises: StorageFull when the data folder is at its quota, or would be with so many bytes more."""
        if self._quota is None:
            return
        used = self._used()
        if used + more > self._quota:
            raise StorageFull(
                f"The server keeps {used:,} bytes of at most {self._quota:,}. Delete jobs, models or data sets that you no longer "
                "need, or ask the operator.", used_bytes=used, quota_bytes=self._quota,
            )  # fmt: skip

    def _used(self) -> int:
        at = time.monotonic()
        if self._weighed is None or at - self._weighed[0] > WEIGH_S:
            self._weighed = at, _size(self._folder.root)
        return self._weighed[1]


def _size(folder: os.PathLike[str]) -> int:
    whole = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                whole += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # deleted meanwhile
                continue
    return whole
