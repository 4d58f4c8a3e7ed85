"""Errors over HTTP: one table from exception class to status, one body (RFC 9457 problem+json)."""

import errno
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from models import errors as ours
from models.errors import VitfitError

log = logging.getLogger("vitfit.service")
PROBLEM_TYPE: Final = "application/problem+json"


class NotFound(ours.UnknownName):
    """The address names something that is not there."""

    code = "not-found"


class BadPageToken(VitfitError):
    """A page_token that this list did not hand out."""

    code = "bad-page-token"


class MalformedUpload(VitfitError):
    """A body that is not what its Content-Type says, or that ends too early."""

    code = "malformed-upload"


class WrongMediaType(VitfitError):
    """A Content-Type that this address does not take."""

    code = "wrong-media-type"


class Conflict(VitfitError):
    """The state of the thing does not allow it now."""

    code = "conflict"


class KeyReused(VitfitError):
    """An Idempotency-Key that belongs to another request."""

    code = "idempotency-key-reused"


class RangeUnsatisfiable(VitfitError):
    """A Range beyond the end of the file."""

    code = "range-unsatisfiable"


class ValidationBroken(VitfitError):
    """The validating process died or answered nonsense."""

    code = "validation-broken"


class ValidationSlow(VitfitError):
    """The validating process was not ready in time."""

    code = "validation-slow"


class WorkerCrashed(VitfitError):
    """A job's process died again and again."""

    code = "worker-crashed"


class InternalError(VitfitError):
    """A mistake of ours; the log says more."""

    code = "internal-error"


class Unhealthy(VitfitError):
    """The server answers, and does not do its work."""

    code = "unhealthy"


class StorageFull(VitfitError):
    """No space left for what was sent."""

    code = "storage-full"


STATUS: Final[dict[type[VitfitError], int]] = {
    VitfitError: 500,
    ours.InvalidRequest: 422,
    ours.UnknownName: 422,
    ours.UnsupportedModel: 422,
    ours.CheckpointMismatch: 422,
    ours.UnsafeFile: 422,
    ours.DamagedFile: 422,
    ours.TooLarge: 413,
    ours.BadData: 422,
    ours.ImpossibleBudget: 422,
    ours.DeviceUnavailable: 422,
    ours.ParityFailure: 500,
    ours.Canceled: 409,
    NotFound: 404,
    BadPageToken: 400,
    MalformedUpload: 400,
    WrongMediaType: 415,
    Conflict: 409,
    KeyReused: 409,
    RangeUnsatisfiable: 416,
    ValidationBroken: 500,
    ValidationSlow: 503,
    WorkerCrashed: 500,
    InternalError: 500,
    Unhealthy: 503,
    StorageFull: 507,
}
BY_CODE: Final = {cls.code: status for cls, status in STATUS.items()}


def status_of(error: VitfitError) -> int:
    """The HTTP status of the nearest class in the table."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem(code: str, status: int, detail: str, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body. Facts stand beside the standard members and never replace them."""
    members = {"type": f"/problems/{code}", "title": code.replace("-", " ").capitalize(), "status": status}
    return {**(facts or {}), **members, "detail": detail}


def stored_problem(error: Mapping[str, Any]) -> dict[str, Any]:
    """The body for an error that a worker stored with its job (`VitfitError.to_json`)."""
    code = str(error["code"])
    return problem(code, BY_CODE.get(code, 500), str(error["detail"]), error.get("facts"))


def answer(error: VitfitError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The whole response for one of our errors."""
    status = status_of(error)
    return _response(problem(error.code, status, error.detail, error.facts), headers)


def _response(body: dict[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(body, body["status"], dict(headers or {}), media_type=PROBLEM_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Make every error of `app` answer with problem+json."""
    app.add_exception_handler(VitfitError, _on_vitfit_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_exception)


async def _on_vitfit_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, VitfitError)
    headers = {"Retry-After": "5"} if status_of(error) == 503 else None
    return answer(error, headers)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-").replace("'", "")
    detail = f"{request.method} {request.url.path}: {error.detail}. GET /openapi.json lists what there is."
    return _response(problem(code, error.status_code, detail), error.headers)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return answer(invalid_fields(error.errors()))


async def _on_exception(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return answer(StorageFull("The server's disk is full. Delete jobs, models or data sets, or ask the operator."))
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer(InternalError(f"The server made a mistake ({type(error).__name__}). Its log says more."))


def invalid_fields(errors: Any) -> ours.InvalidRequest:
    """One error for all that pydantic found: each with field, value and what is allowed."""
    found = [_invalid_field(item) for item in errors]
    first = found[0]
    where = f"{first['field']}: " if first["field"] else ""
    more = f" (and {len(found) - 1} more, see errors)" if len(found) > 1 else ""
    return ours.InvalidRequest(f"{where}{first['detail']}{more}", errors=found)


def _invalid_field(item: Mapping[str, Any]) -> dict[str, Any]:
    location = [str(part) for part in item["loc"] if part not in ("body", "query", "path", "header")]
    context = {name: _json(value) for name, value in item.get("ctx", {}).items() if name != "error"}
    found = {"field": ".".join(location), "detail": item["msg"], "value": _json(item.get("input"))}
    return {**found, "allowed": context} if context else found


def _json(value: Any) -> Any:
    """A value as it came if it is a short JSON scalar, otherwise its beginning as text."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= 200):
        return value
    return value if isinstance(value, float) and value - value == 0 else repr(value)[:200]
