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
A vision transformer and a budget go in; a smaller ONNX file that meets the budget comes out, with the evidence.

Upload a model and data, `POST /v1/jobs`, follow the job at its `Location`, download its artefacts.
Every error is `application/problem+json` (RFC 9457) with a stable `type` and a `detail` that says what to do next.
"""
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Malformed: a page token, an upload, a range."},
    401: {"model": Problem, "description": "A token is needed, or this one is not known."},
    403: {"model": Problem, "description": "The token may not do this."},
    404: {"model": Problem, "description": "There is no such thing; the nearest names are given."},
    409: {"model": Problem, "description": "The state does not allow it now."},
    413: {"model": Problem, "description": "Larger than the server's limit."},
    415: {"model": Problem, "description": "A media type that is not taken here."},
    416: {"model": Problem, "description": "The range is outside the file."},
    422: {"model": Problem, "description": "Refused, with the reason: a value, a model, a file, a budget."},
    429: {"model": Problem, "description": "Too many requests, or too many unfinished jobs; see Retry-After."},
    500: {"model": Problem, "description": "A mistake of the server."},
    503: {"model": Problem, "description": "Not now; see Retry-After."},
    507: {"model": Problem, "description": "The server's disk is full."},
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
