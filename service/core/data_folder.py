"""The layout of the data folder: the path of every file and folder in it.

No other module builds these paths from their parts.
"""

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.atomic_write import UNFINISHED
from service.core.processes import is_gone, whoami

HOUR_S = 3600.0


@dataclass(frozen=True)
class JobFiles:
    """The folders that a job reads and writes. All jobs share `tables`, which holds the fitted latency tables."""

    model: Path
    dataset: Path | None
    artifacts: Path
    work: Path
    tables: Path


def remove(path: Path) -> None:
    """Delete a file, or a folder with its contents. Do nothing if the path does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class JobFolder:
    """The files of one job."""

    root: Path

    @property
    def artifacts(self) -> Path:
        """The folder of the job's finished files. A file is written elsewhere first and then moved here."""
        return self.root / "artifacts"

    @property
    def work(self) -> Path:
        """The scratch folder. It survives an attempt, so that the next attempt can reuse its contents."""
        return self.root / "work"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    def create(self) -> None:
        """Create the folders, and delete the unfinished files that a killed attempt left in them."""
        for folder in (self.artifacts, self.work):
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in list(folder.glob(f"**/*{UNFINISHED}")):
                remove(unfinished)


@dataclass(frozen=True)
class DataFolder:
    """The server's data folder.

    The folders of models, data sets and jobs are named by ids that the server generates, never by text from a user.
    """

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "vitfit.sqlite"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def tables(self) -> Path:
        """The folder of the fitted latency tables, which all jobs share."""
        return self.root / "tables"

    @property
    def devices(self) -> Path:
        """The folder of the device profiles that users have added."""
        return self.root / "devices"

    @property
    def cache(self) -> Path:
        """The folder of local copies of files from the bucket."""
        return self.root / "cache"

    @property
    def uploads(self) -> Path:
        """The folder of unfinished uploads. Each server process has its own folder in it."""
        return self.root / "uploads"

    def job(self, job_id: str) -> JobFolder:
        return JobFolder(self.jobs / job_id)

    def job_files(self, job_id: str, model: Path, dataset: Path | None) -> JobFiles:
        """Return the folders that the engine needs for a job, and create the job's own folders."""
        folder = self.job(job_id)
        folder.create()
        return JobFiles(model, dataset, folder.artifacts, folder.work, self.tables)

    @contextmanager
    def uploading(self) -> Iterator[Path]:
        """Provide an empty temporary folder, and delete it with its remaining contents at the end.

        It is on the same file system as the destination, so that its files can be moved there without a copy.
        """
        folder = self.uploads / whoami().replace("/", "_") / secrets.token_hex(8)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def create(self) -> None:
        """Create the folders, and check that files can be written to the data folder. Raises: OSError."""
        for folder in (self.models, self.datasets, self.jobs, self.tables, self.devices, self.uploads):
            folder.mkdir(parents=True, exist_ok=True)
        probe = self.root / f".probe-{secrets.token_hex(4)}"
        probe.write_bytes(b"vitfit")
        probe.unlink()

    def sweep(self) -> None:
        """Delete the unfinished uploads of processes that ran on this machine and have ended.

        Also delete unfinished latency tables that are older than one hour.
        """
        for unfinished in self.tables.glob(f"*{UNFINISHED}"):
            # A job of another server may still be writing this file.
            if time.time() - unfinished.stat().st_mtime > HOUR_S:
                unfinished.unlink(missing_ok=True)
        for folder in self.uploads.iterdir():
            if is_gone(folder.name.replace("_", "/")):
                shutil.rmtree(folder, ignore_errors=True)


def artifacts_key(job_id: str) -> str:
    """Return the storage key of a job's finished files."""
    return f"jobs/{job_id}/artifacts"


def log_key(job_id: str) -> str:
    """Return the storage key of a job's log. In a shared storage, the log is copied there after each attempt."""
    return f"jobs/{job_id}/log"


def waits_file(folder: DataFolder) -> Path:
    """Return the path of the text file that says why queued jobs wait for a cluster. It exists only while they wait."""
    return folder.root / "cluster-waits.txt"


def tail(path: Path, count: int) -> str:
    """Return the end of a text file.

    Args:
        path: the text file. If it does not exist, the result is empty.
        count: upper limit in bytes. If the file is longer, the result starts at the first full line within the limit.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - count))
            found = file.read()
    except FileNotFoundError:
        return ""
    lines = found if size <= count else found.partition(b"\n")[2]
    return lines.decode(errors="replace")
