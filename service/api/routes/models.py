"""/v1/models: timm models with timm's or uploaded weights, ONNX files, and Hugging Face folders."""

import json
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from models.errors import InvalidRequest
from models.loading.model_files import stored_name
from service.api.auth import Reader, Submitter
from service.api.context import Service, ServiceOf
from service.api.paging import PageQuery, mine, newest_first
from service.api.routes.bodies import MULTIPART_TYPE, body_of, content_length, media_type, parse
from service.api.schemas import ModelPage, ModelRequest, ModelView
from service.db.tables import ModelRow
from service.library.uploads import receive

router = APIRouter(prefix="/v1/models", tags=["models"])

PARTS = {
    "config": {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": "#/components/schemas/ModelRequest"},
        "description": "The same JSON as in a request without a checkpoint.",
        "example": '{"name": "vit_tiny_patch16_224", "options": {"num_classes": 10}}',
    },
    "checkpoint": {
        "type": "string",
        "contentMediaType": "application/octet-stream",
        "description": "For a timm model: a .safetensors file, or a .pth file that contains only tensors. For another "
        "model: an .onnx file, or a .zip file with either an ONNX file and its external data or a Hugging Face folder.",
        "example": "weights.safetensors",
    },
}


@router.post("", status_code=201, openapi_extra=body_of(ModelRequest, PARTS, ["config", "checkpoint"]))
async def create_model(request: Request, response: Response, service: ServiceOf, caller: Submitter) -> ModelView:
    """Register a model.

    The server builds and describes it before it answers, and rejects a model that it cannot prune.
    """
    await run_in_threadpool(service.retention.room.check, content_length(request))
    with service.folder.uploading() as folder:
        config = await _receive(request, folder, service)
        (folder / "model.json").write_text(json.dumps(config.model_dump(mode="json"), indent=1))
        description = await service.validator.describe(
            {"model": str(folder)}, service.settings.register_timeout_s, caller.owner
        )
        row = await run_in_threadpool(
            service.library.add, ModelRow, folder, config.name, description=description, owner=caller.owner
        )
    response.headers["Location"] = f"/v1/models/{row.id}"
    return ModelView.of(row)


async def _receive(request: Request, folder: Path, service: Service) -> ModelRequest:
    if media_type(request) != MULTIPART_TYPE:
        return parse(ModelRequest, await request.body())
    arriving = folder / "arriving"
    limit, room = service.settings.upload_limit_bytes, service.retention.room
    upload = await receive(request, "checkpoint", ["config"], arriving, limit=limit, room=room)
    if "config" not in upload.fields or upload.filename is None:
        raise InvalidRequest(
            "The upload lacks a part. A multipart request for a model needs the parts 'config' (JSON) and 'checkpoint' "
            "(file).",
            allowed=[*PARTS],
        )
    config = parse(ModelRequest, upload.fields["config"])
    arriving.rename(folder / stored_name(upload.filename))
    return config.model_copy(update={"pretrained": False})


@router.get("")
def list_models(service: ServiceOf, caller: Reader, page: PageQuery) -> ModelPage:
    """List your models, newest first."""
    rows, token = newest_first(service.store, ModelRow, page, "models", *mine(ModelRow, caller))
    return ModelPage(models=[ModelView.of(row) for row in rows], next_page_token=token)


@router.get("/{model_id}")
def get_model(model_id: str, service: ServiceOf, caller: Reader) -> ModelView:
    """Return a model and its description."""
    return ModelView.of(service.library.get(ModelRow, model_id, caller.sees))


@router.delete("/{model_id}", status_code=204)
def delete_model(model_id: str, service: ServiceOf, caller: Submitter) -> None:
    """Delete a model and its weights. 409 while an unfinished job uses it."""
    service.library.delete(ModelRow, model_id, caller.sees)
