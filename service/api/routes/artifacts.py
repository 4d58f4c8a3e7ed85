"""/v1/jobs/{id}/artifacts: the artifacts (finished files) of a job."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from service.api.artifacts import ArtifactResponse, artifact_named, artifacts_of, is_known
from service.api.auth import Reader
from service.api.context import ServiceOf
from service.api.schemas import ArtifactList, ArtifactView
from service.core.data_folder import artifacts_key

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["artifacts"])

BINARY = {"application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}}
HEADERS = {
    "ETag": {"schema": {"type": "string"}, "description": "SHA-256 of the complete file."},
    "Repr-Digest": {
        "schema": {"type": "string"},
        "description": "SHA-256 of the complete file, as RFC 9530 defines it: sha-256=:base64:",
    },
}
FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": BINARY, "description": "The complete file.", "headers": HEADERS},
    206: {"content": BINARY, "description": "The requested range of the file.", "headers": HEADERS},
    307: {
        "description": "With VITFIT_DOWNLOADS=link: an address in the bucket from which anybody can download the file "
        "for 15 minutes."
    },
    304: {"description": "The file has not changed: If-None-Match contains its ETag."},
}


@router.get("")
def list_artifacts(job_id: str, service: ServiceOf, caller: Reader) -> ArtifactList:
    """List the artifacts of a job with name, size and digest."""
    service.jobs.get(job_id, caller.sees)
    found = artifacts_of(service.storage, job_id)
    return ArtifactList(artifacts=[ArtifactView.of(artifact, job_id) for artifact in found])


@router.get("/{name}", response_class=Response, responses=FILE)
def get_artifact(job_id: str, name: str, request: Request, service: ServiceOf, caller: Reader) -> Response:
    """Download an artifact. `Range` and `If-Range` resume a download; `Repr-Digest` is the digest to check it with."""
    service.jobs.get(job_id, caller.sees)
    artifact = artifact_named(service.storage, job_id, name)
    if is_known(artifact.etag, request):
        return Response(status_code=304, headers=artifact.headers)
    key = artifacts_key(job_id)
    if service.settings.downloads == "link" and request.method == "GET":
        link = service.storage.link(key, artifact, artifact.media_type)
        if link is not None:
            return RedirectResponse(link, 307, headers=artifact.headers)
    return ArtifactResponse(artifact, service.storage.file(key, artifact))


@router.head("/{name}", include_in_schema=False)
def head_artifact(job_id: str, name: str, request: Request, service: ServiceOf, caller: Reader) -> Response:
    """Return the headers of an artifact."""
    return get_artifact(job_id, name, request, service, caller)
