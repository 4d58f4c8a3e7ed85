"""Run a job without a server, for `vitfit compress`."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitfit.model_source import packed

from models.loading.model_files import stored_name
from service.core.data_folder import JobFiles
from service.core.disk_space import free_bytes, is_full, temporary_folder
from service.core.errors import StorageFull
from service.jobs.job_request import JobRequest
from service.jobs.journal import MemoryJournal
from service.pipeline.pipeline import run

Progress = Callable[[MemoryJournal], None]


def compress(  # noqa: PLR0917  programs call it by position
    request: JobRequest,
    model: dict[str, Any],
    checkpoint: Path | None,
    data: Path | None,
    output: Path,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Run one job, and write its artifacts to the folder `output`.

    Return the result of the job as JSON (`vitfit.report.JobResult`), with "report": the path of report.html.

    model: the content of a model.json. checkpoint: file or folder with the weights; None: timm provides them. data:
    file or folder of the data set. on_progress: called after every change of the journal.

    Raises: a subclass of VitfitError.
    """
    temporary = temporary_folder()
    with (
        _writing(output),
        tempfile.TemporaryDirectory(prefix="vitfit-", dir=temporary) as folder,
        _writing(output),  # this one sees the free space before the temporary files are deleted
    ):
        output.mkdir(parents=True, exist_ok=True)
        root = Path(folder)
        files = JobFiles(
            model_folder(root / "model", model, checkpoint),
            None if data is None else _data_folder(root / "data", data),
            output,
            root / "work",
            root / "tables",
        )
        allowed = () if data is None else (data.resolve(),)
        result = run(request, files, MemoryJournal(on_change=on_progress), allowed=allowed)
    return {**result.to_json(), "report": str(output / "report.html")}


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Name the folders and their free space in the error if a disk is full. Raises: StorageFull."""
    try:
        yield
    except StorageFull:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        places = {"the temporary folder": temporary_folder(), "the output folder": existing(output)}
        free = {name: free_bytes(place) for name, place in places.items()}
        shown = " and ".join(f"{name} {str(place)!r} has {free[name]:,}" for name, place in places.items())
        raise StorageFull(
            f"vitfit cannot write a file, because there is no space left. Free bytes: {shown}. Make room there. For"
            " another temporary folder, set the environment variable TMPDIR.",
            free_bytes=min(free.values()),
        ) from error


def existing(folder: Path) -> Path:
    """Return the folder itself, or the nearest folder above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def model_folder(folder: Path, model: dict[str, Any], checkpoint: Path | None) -> Path:
    """Write a model to `folder` in the form that an upload has, and return the folder.

    Raises: InvalidRequest when vitfit cannot read this type of file.
    """
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(model))
    if checkpoint is not None:
        with tempfile.TemporaryDirectory(prefix="vitfit-") as scratch:
            file = packed(checkpoint, Path(scratch))
            shutil.copyfile(file, folder / stored_name(file.name))
    return folder


def _data_folder(folder: Path, data: Path) -> Path:
    """Describe a data set in `folder` in the form that an upload has, and return the folder.

    A file is copied. A folder is not copied: the job reads the user's own folder.
    """
    folder.mkdir()
    if data.is_dir():
        description: dict[str, str | None] = {"source": "path", "path": str(data.resolve()), "filename": data.name}
    elif data.suffix == ".npz":
        description = {"source": "npz", "path": None, "filename": data.name}
        shutil.copyfile(data, folder / "data.npz")
    else:
        description = {"source": "archive", "path": None, "filename": data.name}
        shutil.copyfile(data, folder / ("data.zip" if data.suffix == ".zip" else "data.tar"))
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
