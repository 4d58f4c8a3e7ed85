"""The errors of the service and their HTTP form: one table from exception class to status, and the body (RFC 9457).

This module imports no web framework, because workers use these classes too. The exception handlers are in
service/middleware/problems.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from models import errors as ours
from models.errors import VitfitError


class NotFound(ours.UnknownName):
    """The URL names a resource that does not exist, or that the caller may not see."""

    code = "not-found"


class BadPageToken(VitfitError):
    """The `page_token` does not come from an earlier page of this list."""

    code = "bad-page-token"


class MalformedUpload(VitfitError):
    """The request body does not match its Content-Type, or it ends too early."""

    code = "malformed-upload"


class WrongMediaType(VitfitError):
    """This URL does not accept the Content-Type of the request."""

    code = "wrong-media-type"


class Conflict(VitfitError):
    """The current state of the resource does not allow the request."""

    code = "conflict"


def in_use(noun: str, name: str, jobs: Sequence[str]) -> Conflict:
    """Build the error for a resource that cannot be deleted because unfinished jobs use it.

    Args:
        noun: the kind of resource, such as "model".
        name: its id or name.
        jobs: the ids of the unfinished jobs. The message names the first five.
    """
    return Conflict(
        f"The {noun} {name} is used by unfinished jobs: {', '.join(jobs[:5])}. "
        "Wait until they have ended, or cancel them first.",
        jobs=list(jobs),
    )


class Unauthorized(VitfitError):
    """The request has no access token, or the token is unknown."""

    code = "unauthorized"


class Forbidden(VitfitError):
    """The access token does not permit this request."""

    code = "forbidden"


class TooMany(VitfitError):
    """The caller has reached the limit on unfinished jobs or on requests per minute."""

    code = "too-many"


class TimeLimitReached(VitfitError):
    """The job ran longer than its time limit."""

    code = "time-limit-reached"


class KeyReused(VitfitError):
    """The Idempotency-Key was already used for a different request."""

    code = "idempotency-key-reused"


class RangeUnsatisfiable(VitfitError):
    """The Range header starts beyond the end of the file."""

    code = "range-unsatisfiable"


class ValidationBroken(VitfitError):
    """The validation process crashed, or its answer could not be parsed."""

    code = "validation-broken"


class ValidationSlow(VitfitError):
    """The validation process did not answer within its time limit."""

    code = "validation-slow"


class LimitReached(VitfitError):
    """A file or a job needs more memory, processor time, disk or open files than the operator allows."""

    code = "limit-reached"


class WorkerCrashed(VitfitError):
    """The worker process of a job died several times in a row."""

    code = "worker-crashed"


class InternalError(VitfitError):
    """A bug in vitfit; the log has the details."""

    code = "internal-error"


class Unhealthy(VitfitError):
    """The server answers requests but cannot run jobs."""

    code = "unhealthy"


class ClusterUnavailable(VitfitError):
    """The Ray cluster does not answer, has no node for the trials any more, or lost the same trial several times."""

    code = "cluster-unavailable"


class ClusterUnfit(VitfitError):
    """No node of the cluster has the resources that the job needs, or a node has other versions than the server."""

    code = "cluster-unfit"


class StorageFull(VitfitError):
    """There is not enough disk space for the request or the job."""

    code = "storage-full"


class Away(VitfitError):
    """A service that the server depends on does not answer at the moment. A retry may succeed."""

    code = "away"


class DatabaseAway(Away):
    """The database does not answer at the moment."""

    code = "database-away"


class StorageAway(Away):
    """The bucket does not answer at the moment."""

    code = "storage-away"


class StorageUnusable(VitfitError):
    """The bucket does not exist, denies access, or contains a damaged file. A retry does not help."""

    code = "storage-unusable"


class DatabaseUnusable(VitfitError):
    """The database does not exist or cannot be used, or its user lacks a privilege. A retry does not help."""

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
    LimitReached: 413,
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
    """Return the HTTP status of an error: that of its own class, or of its nearest base class in `STATUS`."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem(code: str, status: int, detail: str, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Build the problem body. `facts` become extra members; they never replace the standard members."""
    members = {"type": f"/problems/{code}", "title": code.replace("-", " ").capitalize(), "status": status}
    return {**(facts or {}), **members, "detail": detail}


def stored_problem(error: Mapping[str, Any]) -> dict[str, Any]:
    """Build the problem body for an error that a worker stored with its job (the output of `VitfitError.to_json`)."""
    code = str(error["code"])
    return problem(code, BY_CODE.get(code, 500), str(error["detail"]), error.get("facts"))
