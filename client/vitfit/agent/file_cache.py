"""The files that an agent has fetched, each under its SHA-256."""

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from vitfit.agent.exchange import Exchange
from vitfit.agent.task import TaskFile
from vitfit.errors import VitfitError

CACHE_BYTES = 2 * 2**30
MOST_FILE_BYTES = 2 * 2**30
"""The default for the largest file. Servers send an agent no larger ones."""
KEEP_FREE_BYTES = 2**29
"""Free disk space in bytes that the agent leaves to the other programs of its machine."""


class FileCache:
    """A folder of fetched files. The oldest ones are deleted when they are more than `CACHE_BYTES` together."""

    def __init__(self, folder: Path, most_file_bytes: int = MOST_FILE_BYTES) -> None:
        """most_file_bytes: upper limit in bytes for one file."""
        self.folder, self._most = folder, most_file_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, exchange: Exchange, address: str, file: TaskFile, *, headers: dict[str, str]) -> Path:
        """Return the path of a file, and fetch it from `address` if it is missing.

        Raises: VitfitError when the file is too large, there is no room, its content does not match its SHA-256, or it
            cannot be stored.
        """
        target = self.folder / file.sha256
        try:
            if not target.exists():
                self._require_room(file)
                self._fetch(exchange, address, file, target, headers=headers)
            os.utime(target)
        except OSError as error:
            raise VitfitError.local(
                "not-stored", f"The agent could not store a file of the task ({error.strerror})."
            ) from error
        return target

    def _require_room(self, file: TaskFile) -> None:
        if file.bytes > self._most:
            raise VitfitError.local(
                "file-too-large",
                f"A file of the task has {file.bytes:,} bytes, but this agent takes at most {self._most:,}. "
                "Start the agent with a larger --max-file-bytes.",
            )
        free = shutil.disk_usage(self.folder).free - KEEP_FREE_BYTES
        if file.bytes > free:
            raise VitfitError.local(
                "disk-full",
                f"A file of the task has {file.bytes:,} bytes, but the agent's disk has room for {max(free, 0):,}. "
                "Free space on the device.",
            )

    def _fetch(
        self, exchange: Exchange, address: str, file: TaskFile, target: Path, *, headers: dict[str, str]
    ) -> None:
        beside = target.with_suffix(f".{os.getpid()}.part")
        try:
            found = exchange.download(address, beside, file.bytes, headers=headers)
            if found != file.sha256:
                raise VitfitError.local(
                    "damaged-file",
                    f"The downloaded file {file.sha256[:12]} is damaged: it has another SHA-256 than the server gave.",
                )
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)

    def make_room(self, needed: Collection[str]) -> None:
        """Delete the oldest files while all files are more than `CACHE_BYTES`. needed: digests of files that stay."""
        with contextlib.suppress(OSError):  # the next task tries again
            files = [(path, path.stat()) for path in self.folder.iterdir()]
            whole = sum(found.st_size for _, found in files)
            for path, found in sorted(files, key=lambda item: item[1].st_mtime):
                if whole > CACHE_BYTES and path.name not in needed:
                    whole -= found.st_size
                    path.unlink(missing_ok=True)
