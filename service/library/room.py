"""The space that uploads may still use: the quota of the data folder, and the disk."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

from service.core.data_folder import DataFolder
from service.core.disk_space import free_bytes
from service.core.errors import StorageFull

WEIGH_S: Final = 30.0
"""The size of the data folder is computed at most once in this many seconds."""
WATCH_S: Final = 0.2
"""Time between two looks at a folder that another process fills."""
FRESH_S: Final = 1.0
"""Before a refusal, the data folder is weighed again if its size is older: what has grown may be deleted by now."""


class Room:
    """Knows how much of the quota and of the disk is left. What grows between two weighings is counted on top."""

    def __init__(
        self,
        folder: DataFolder,
        quota_bytes: int | None,
        keep_free_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the limits.

        Args:
            folder: the data folder.
            quota_bytes: upper limit for the size of the data folder; None: as much as the disk has.
            keep_free_bytes: disk space that must stay free for running jobs.
            clock: returns seconds of a monotonic clock.
        """
        self._folder, self._quota, self._keep_free, self._clock = folder, quota_bytes, keep_free_bytes, clock
        self._weighed: tuple[float, int] | None = None
        self._grown = 0
        self._lock = threading.Lock()

    def check(self, more: int = 0) -> None:
        """Check that the quota and the disk have space for `more` additional bytes.

        Raises: StorageFull when the data folder would exceed its quota, or when the disk would have too little free
        space.
        """
        self.check_disk(more)
        if self._quota is None:
            return
        used = self._used()
        if used + more > self._quota:
            used = self._used(FRESH_S)
        if used + more > self._quota:
            raise StorageFull(
                f"The data folder of the server has {used:,} bytes; at most {self._quota:,} are allowed. Delete jobs, "
                "models or data sets that you no longer need, or ask the operator for more space.",
                used_bytes=used,
                quota_bytes=self._quota,
            )

    def check_disk(self, more: int = 0) -> None:
        """Check that the disk has space for `more` additional bytes and for the running jobs.

        Raises: StorageFull when less than `keep_free_bytes` would stay free.
        """
        free = free_bytes(self._folder.root)
        if free - more < self._keep_free:
            needed = f" This request needs {more:,} bytes." if more else ""
            raise StorageFull(
                f"The disk of the server has {free:,} bytes free, and {self._keep_free:,} bytes must stay free for "
                f"running jobs.{needed} Delete jobs, models or data sets that you no longer need, or ask the operator "
                "to make room. Then try again.",
                free_bytes=free,
                keep_free_bytes=self._keep_free,
                needed_bytes=more,
            )

    def take(self, more: int) -> None:
        """Count bytes that are written next. Raises: StorageFull, and counts nothing, if there is no space for them."""
        self.check(more)
        with self._lock:
            self._grown += more

    def left(self) -> int:
        """Return how many bytes can still be written."""
        disk = free_bytes(self._folder.root) - self._keep_free
        return max(0, disk if self._quota is None else min(disk, self._quota - self._used()))

    @contextlib.asynccontextmanager
    async def watching(self, folders: Sequence[Path]) -> AsyncIterator[None]:
        """Count what another process writes to some folders, while the body runs.

        Raises: StorageFull, which cancels the body, as soon as there is no space for more.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch(folders, await asyncio.to_thread(_sum, folders)))
                yield
                watch.cancel()
        except BaseExceptionGroup as several:
            full, others = several.split(StorageFull)
            raise (full or others).exceptions[0] from None  # type: ignore[union-attr]

    async def _watch(self, folders: Sequence[Path], counted: int) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = await asyncio.to_thread(_sum, folders)
            if now > counted:
                await asyncio.to_thread(self.take, now - counted)
                counted = now

    def _used(self, age_s: float = WEIGH_S) -> int:
        with self._lock:
            at = self._clock()
            if self._weighed is None or at - self._weighed[0] > age_s:
                self._weighed = at, size_of(self._folder.root) - size_of(self._folder.cache)
                self._grown = 0
            return self._weighed[1] + self._grown


def size_of(folder: os.PathLike[str]) -> int:
    """Return the size of all files below a folder, in bytes."""
    whole = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                whole += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # deleted meanwhile
                continue
    return whole


def _sum(folders: Sequence[Path]) -> int:
    return sum(size_of(folder) for folder in folders)
