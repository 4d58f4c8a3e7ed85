"""Errors of the service, and how each looks over HTTP: one table from exception class to status, one body (RFC 9457).

No web framework here: workers use these classes too. The handlers are in service/middleware/problems.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from models import errors as ours
from models.errors import VitfitError


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


def in_use(noun: str, name: str, jobs: Sequence[str]) -> Conflict:
    """Of a thing that jobs need which are not finished."""
    return Conflict(
        f"The {noun} {name} is used by {', '.join(jobs[:5])}. Wait for it, or cancel it first.", jobs=list(jobs)
    )


class Unauthorized(VitfitError):
    """No token, or one that is not known."""

    code = "unauthorized"


class Forbidden(VitfitError):
    """A token that may not do this."""

    code = "forbidden"


class TooMany(VitfitError):
    """More than one person may have, or ask for, at a time."""

    code = "too-many"


class TimeLimitReached(VitfitError):
    """A job that took longer than it was allowed."""

    code = "time-limit-reached"


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


class ClusterUnavailable(VitfitError):
    """The cluster on which trials run does not answer, or lost a trial again and again."""

    code = "cluster-unavailable"


class ClusterUnfit(VitfitError):
    """No node of the cluster can run what the job asks for, or a node runs other versions."""

    code = "cluster-unfit"


class StorageFull(VitfitError):
    """No space left for what was sent."""

    code = "storage-full"


class Away(VitfitError):
    """Something that the server needs does not answer now, and may answer soon."""

    code = "away"


class DatabaseAway(Away):
    """The database."""

    code = "database-away"


class StorageAway(Away):
    """The bucket."""

    code = "storage-away"


class StorageUnusable(VitfitError):
    """The bucket is missing, refuses us, or holds what it should not."""

    code = "storage-unusable"


class DatabaseUnusable(VitfitError):
    """The database is missing, refuses us, or lacks a right."""

    code = "database-unusable"


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
    TooMany: 429,
    TimeLimitReached: 422,
    Unauthorized: 401,
    Forbidden: 403,
    KeyReused: 409,
    RangeUnsatisfiable: 416,
    ValidationBroken: 500,
    ValidationSlow: 503,
    WorkerCrashed: 500,
    InternalError: 500,
    Unhealthy: 503,
    StorageFull: 507,
    Away: 503,
    ClusterUnavailable: 503,
    ClusterUnfit: 422,
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
