"""Turn every error of the web application into an application/problem+json response (RFC 9457)."""

import json
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from models.errors import InvalidRequest, VitfitError
from models.field_errors import field_errors, in_words
from service.core import logs
from service.core.disk_space import is_full, storage_full
from service.core.errors import InternalError, problem, status_of
from service.middleware.request_ids import HEADER

log = logging.getLogger("vitfit.service")
HEADERS: Final = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "5"}, 503: {"Retry-After": "5"}}
PROBLEM_TYPE: Final = "application/problem+json"


def answer(error: VitfitError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the complete response for a `VitfitError`."""
    status = status_of(error)
    return _response(problem(error.code, status, error.detail, error.facts), headers)


class _Problem(JSONResponse):
    """A problem+json response that may contain any text that a caller sent.

    Lone surrogates, which UTF-8 cannot encode, are written as JSON escapes.
    """

    media_type = PROBLEM_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "backslashreplace"
        )


def _finite(value: Any) -> Any:
    """Replace NaN and infinities by text, because JSON cannot represent them."""
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _response(body: dict[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    return _Problem(body, body["status"], dict(headers or {}))


def add_handlers(app: FastAPI, data: Path) -> None:
    """Register handlers so that every error of `app` becomes a problem+json response.

    data: the data folder; the response to "disk full" reports the free space of its disk.
    """

    async def on_exception(request: Request, error: Exception) -> JSONResponse:
        if is_full(error):
            return answer(storage_full(data, "Nothing was stored or changed."))
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        found = logs.request_id()  # no middleware sees this response, so the id header is set here
        headers = {HEADER: found} if found else {}
        return answer(
            InternalError(
                f"The server has an internal error ({type(error).__name__}). The log of the server has the details."
            ),
            headers,
        )

    app.add_exception_handler(VitfitError, _on_vitfit_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    for kind in (OSError, DBAPIError, Exception):
        app.add_exception_handler(kind, on_exception)


async def _on_vitfit_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, VitfitError)
    return answer(error, HEADERS.get(status_of(error)))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-").replace("'", "")
    detail = f"{request.method} {request.url.path}: {error.detail}. GET /openapi.json lists all addresses."
    headers = {"Allow": _methods_at(request)} if error.status_code == 405 else error.headers
    return _response(problem(code, error.status_code, detail), headers)


def _methods_at(request: Request) -> str:
    """Return the HTTP methods of all routes that match this address.

    The router itself reports only the methods of the first matching route.
    """
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found - {"HEAD"}))


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The first part of each place is the part of the request: body, query, path or header.
    return answer(invalid_fields([{**item, "loc": item["loc"][1:]} for item in error.errors()]))


def invalid_fields(errors: Any) -> InvalidRequest:
    """Combine all errors that pydantic found into one, with field, value and allowed values for each."""
    found = field_errors(errors)
    return InvalidRequest(in_words(found), errors=found)
