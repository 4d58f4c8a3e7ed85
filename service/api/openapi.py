"""Create the OpenAPI document of the server.

It extends the document that FastAPI generates: errors are problem+json, and the request bodies that routes read
themselves are described.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.api.links import add_links
from service.api.schemas import DatasetRequest, ModelRequest, Problem
from service.middleware.problems import PROBLEM_TYPE
from service.middleware.rate_limit import FREE

DESCRIPTION = """
vitfit makes a vision transformer smaller, so that it meets a budget. The result is an ONNX file, with a report that has
the measurements.

Upload a model and data. Send `POST /v1/jobs`. Follow the job at the address in `Location`. Then download its artifacts.

Every error has the media type `application/problem+json` (RFC 9457). It has a stable `type`, and a `detail` that says
what to do next.
"""
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is malformed: a page token, an upload or a range."},
    401: {"model": Problem, "description": "The access token is missing or unknown."},
    403: {"model": Problem, "description": "The access token does not allow this action."},
    404: {"model": Problem, "description": "The object does not exist. The error names the nearest existing names."},
    409: {"model": Problem, "description": "The action is not possible in the current state of the object."},
    413: {"model": Problem, "description": "The body is larger than the limit of the server."},
    415: {"model": Problem, "description": "The server does not accept this media type at this address."},
    416: {"model": Problem, "description": "The range is outside of the file."},
    422: {
        "model": Problem,
        "description": "The server rejects a value, a model, a file or a budget. The error has the reason.",
    },
    429: {
        "model": Problem,
        "description": "There are too many requests or too many unfinished jobs. "
        "Retry-After says after how many seconds to try again.",
    },
    500: {"model": Problem, "description": "The server has an internal error."},
    503: {
        "model": Problem,
        "description": "The server cannot do this now. Retry-After says after how many seconds to try again.",
    },
    507: {"model": Problem, "description": "The disk of the server is full."},
}
NEEDS = {400: ("post", "get"), 409: ("post", "delete"), 413: ("post",), 415: ("post",), 507: ("post",)}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document. It is built at the first call and then cached."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
        _add_bodies(schema)
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _correct_problems(operation, method, path)
        add_links(schema)
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        for path in FREE:
            schema["paths"][path]["get"]["security"] = []
        schema["components"]["schemas"].pop("HTTPValidationError", None)
        schema["components"]["schemas"].pop("ValidationError", None)
        app.openapi_schema = schema
    return app.openapi_schema


def _add_bodies(schema: dict[str, Any]) -> None:
    """Add the schemas of the bodies that may be JSON or multipart. FastAPI does not know them: the routes read them."""
    kinds = [(kind, "validation") for kind in (ModelRequest, DatasetRequest)]
    _, found = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schema["components"]["schemas"].update(found["$defs"])


def _correct_problems(operation: dict[str, Any], method: str, path: str) -> None:
    """Keep only the errors that this operation can return, and give them the media type problem+json."""
    responses = operation["responses"]
    for status in [int(name) for name in responses if name.isdigit() and int(name) >= 400]:
        if not _possible(status, method, path):
            del responses[str(status)]
            continue
        content = responses[str(status)].get("content", {})
        responses[str(status)]["content"] = {PROBLEM_TYPE: next(iter(content.values()), {})}


def _possible(status: int, method: str, path: str) -> bool:
    if status in (401, 403):
        return path not in FREE
    if status == 404:
        return "{" in path
    if status == 409 and path.startswith("/v1/agents/"):
        return True  # another agent has registered under this name
    if status == 416:
        return path.endswith("/artifacts/{name}")
    return method in NEEDS.get(status, (method,))
