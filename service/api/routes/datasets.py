"""/v1/datasets: data sets, which are uploaded files or folders below a root that the operator allows."""

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from models.data.allowed_path import below_allowed
from models.errors import InvalidRequest
from service.api.auth import Reader, Submitter
from service.api.context import Service, ServiceOf
from service.api.paging import PageQuery, mine, newest_first
from service.api.routes.bodies import MULTIPART_TYPE, body_of, content_length, media_type, parse
from service.api.schemas import DatasetPage, DatasetRequest, DatasetView
from service.core.settings import Settings
from service.db.tables import DatasetRow
from service.library.uploads import receive

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
PARTS = {
    "file": {
        "type": "string",
        "contentMediaType": "application/octet-stream",
        "description": "An .npz file with `images` (and optionally `labels` and `split`), "
        "or a zip or tar file with one folder for each class.",
        "example": "digits.npz",
    }
}


@router.post("", status_code=201, openapi_extra=body_of(DatasetRequest, PARTS, ["file"]))
async def create_dataset(request: Request, response: Response, service: ServiceOf, caller: Submitter) -> DatasetView:
    """Register a data set. The server opens and checks it before it answers."""
    await run_in_threadpool(service.retention.room.check, content_length(request))
    with service.folder.uploading() as folder:
        config = await _receive(request, folder, service)
        (folder / "dataset.json").write_text(json.dumps(config, indent=1))
        allowed = [str(root) for root in service.settings.allowed_roots]
        question = {"dataset": str(folder), "allowed": allowed}
        description = await service.validator.describe(question, service.settings.register_timeout_s, caller.owner)
        row = await run_in_threadpool(
            service.library.add,
            DatasetRow,
            folder,
            str(config["filename"]),
            description=description,
            owner=caller.owner,
        )
    response.headers["Location"] = f"/v1/datasets/{row.id}"
    return DatasetView.of(row)


async def _receive(request: Request, folder: Path, service: Service) -> dict[str, Any]:
    """Store the uploaded file, if there is one, in `folder`, and return the content of dataset.json."""
    if media_type(request) != MULTIPART_TYPE:
        path = _allowed_path(parse(DatasetRequest, await request.body()).path, service.settings)
        return {"source": "path", "path": str(path), "filename": path.name[:200]}
    arriving = folder / "arriving"
    limit, room = service.settings.upload_limit_bytes, service.retention.room
    upload = await receive(request, "file", [], arriving, limit=limit, room=room)
    if upload.filename is None:
        raise InvalidRequest(
            "The upload has no file. Send the data set in the multipart part 'file'.", allowed=[*PARTS]
        )
    source, name = _kind_of(upload.filename)
    arriving.rename(folder / name)
    return {"source": source, "path": None, "filename": upload.filename}


def _kind_of(filename: str) -> tuple[str, str]:
    lower = filename.lower()
    if lower.endswith(".npz"):
        return "npz", "data.npz"
    if lower.endswith(".zip"):
        return "archive", "data.zip"
    if lower.endswith(TAR_ENDINGS):
        return "archive", "data.tar"
    endings = [".npz", ".zip", *TAR_ENDINGS]
    raise InvalidRequest(
        f"The server cannot read the file {filename!r}. "
        f"Send a data set whose name ends with one of: {', '.join(endings)}.",
        field="file",
        value=filename,
        allowed=endings,
    )


def _allowed_path(text: str, settings: Settings) -> Path:
    """Return the folder with symbolic links resolved.

    A path outside the allowed roots is rejected before its existence is checked, so callers cannot explore the disk.
    """
    roots = settings.allowed_roots
    path = below_allowed(text, roots)
    if path is None:
        named = ", ".join(map(str, roots)) or "none (the operator of this server can set VITFIT_ALLOWED_ROOTS)"
        raise InvalidRequest(
            f"The path {text!r} is not below an allowed folder. Allowed folders: {named}.",
            field="path",
            value=text,
            allowed=[str(root) for root in roots],
        )
    if not path.is_dir():
        raise InvalidRequest(
            f"The path {text!r} is not a folder on this server. Give the path of a folder.", field="path", value=text
        )
    return path


@router.get("")
def list_datasets(service: ServiceOf, caller: Reader, page: PageQuery) -> DatasetPage:
    """List your data sets, newest first."""
    rows, token = newest_first(service.store, DatasetRow, page, "datasets", *mine(DatasetRow, caller))
    return DatasetPage(datasets=[DatasetView.of(row) for row in rows], next_page_token=token)


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, service: ServiceOf, caller: Reader) -> DatasetView:
    """Return a data set and its description."""
    return DatasetView.of(service.library.get(DatasetRow, dataset_id, caller.sees))


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: str, service: ServiceOf, caller: Submitter) -> None:
    """Delete a data set. A folder that was registered by its path is kept. 409 while an unfinished job uses it."""
    service.library.delete(DatasetRow, dataset_id, caller.sees)
