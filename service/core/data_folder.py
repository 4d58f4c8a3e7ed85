"""Where every file of the data folder is. No other file joins these names."""

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
    """Folders of a job. `tables` is shared by all jobs and holds the fitted latency tables."""

    model: Path
    dataset: Path | None
    artifacts: Path
    work: Path
    tables: Path


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it; whether or not it is there."""
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
        """Finished files only: they are written elsewhere and moved here."""
        return self.root / "artifacts"

    @property
    def work(self) -> Path:
        """Scratch that later attempts find again."""
        return self.root / "work"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    def create(self) -> None:
        """What a killed attempt had not finished goes."""
        for folder in (self.artifacts, self.work):
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in list(folder.glob(f"**/*{UNFINISHED}")):
                remove(unfinished)


@dataclass(frozen=True)
class DataFolder:
    """The server's data folder. Names of models, data sets and jobs are ids that the server made, never users' text."""

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
        """Fitted latency tables, shared by all jobs."""
        return self.root / "tables"

    @property
    def devices(self) -> Path:
        """Profiles that users added."""
        return self.root / "devices"

    @property
    def cache(self) -> Path:
        """Copies of what is kept in a bucket."""
        return self.root / "cache"

    @property
    def uploads(self) -> Path:
        """What is not finished yet: one folder for each server process."""
        return self.root / "uploads"

    def job(self, job_id: str) -> JobFolder:
        return JobFolder(self.jobs / job_id)

    def job_files(self, job_id: str, model: Path, dataset: Path | None) -> JobFiles:
        """What the engine is given for a job; its own folders exist afterwards."""
        folder = self.job(job_id)
        folder.create()
        return JobFiles(model, dataset, folder.artifacts, folder.work, self.tables)

    @contextmanager
    def uploading(self) -> Iterator[Path]:
        """A fresh folder on the same file system as its destination; what is not moved away from it is deleted."""
        folder = self.uploads / whoami().replace("/", "_") / secrets.token_hex(8)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def create(self) -> None:
        """Make the folders and prove that they can be written. Raises: OSError."""
        for folder in (self.models, self.datasets, self.jobs, self.tables, self.devices, self.uploads):
            folder.mkdir(parents=True, exist_ok=True)
        probe = self.root / f".probe-{secrets.token_hex(4)}"
        probe.write_bytes(b"vitfit")
        probe.unlink()

    def sweep(self) -> None:
        """Delete what processes of this machine that are gone had not finished."""
        for unfinished in self.tables.glob(f"*{UNFINISHED}"):
            if time.time() - unfinished.stat().st_mtime > HOUR_S:  # another server's job may be writing one now
                unfinished.unlink(missing_ok=True)
        for folder in self.uploads.iterdir():
            if is_gone(folder.name.replace("_", "/")):
                shutil.rmtree(folder, ignore_errors=True)


def artifacts_key(job_id: str) -> str:
    """Of a job's finished files in the storage."""
    return f"jobs/{job_id}/artifacts"


def log_key(job_id: str) -> str:
    """Of a job's log in a storage that other servers see, after each attempt."""
    return f"jobs/{job_id}/log"


def waits_file(folder: DataFolder) -> Path:
    """Says why queued jobs wait for a cluster; not there when they do not."""
    return folder.root / "cluster-waits.txt"


def tail(path: Path, count: int) -> str:
    """At most so many of the last bytes of a text file, from the start of a line; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - count))
            found = file.read()
    except FileNotFoundError:
        return ""
    lines = found if size <= count else found.partition(b"\n")[2]
    return lines.decode(errors="replace")
