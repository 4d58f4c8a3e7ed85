"""The JSON bodies of requests and responses. `JobRequest` is in service/jobs/job_request.py."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool
from vitfit.offers import Device, Method
from vitfit.report import Guarantee, JobResult
from vitfit.results import DatasetDescription, JobDescription, ModelDescription
from vitfit.trial import Trial

from service.api.artifacts import Artifact
from service.core.errors import stored_problem
from service.db.job_states import FINISHED, LEASED, Status
from service.db.tables import DatasetRow, JobRow, ModelRow
from service.jobs.job_request import Strict

JOB_EXAMPLE: dict[str, Any] = {
    "model": "mdl_5c0f3d6a7b8e9f0a1b2c",
    "dataset": "dat_0a1b2c3d4e5f60718293",
    "budgets": [{"metric": "latency_keep", "limit": 0.6, "device": "cpu", "setting": {"threads": 1, "batch": 1}}],
    "trials": 32,
    "name": "digits at 60 %",
}


class Problem(BaseModel):
    """An error in the format of RFC 9457. Further members hold the facts of the error."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "type": "/problems/unknown-name",
                "title": "Unknown name",
                "status": 422,
                "detail": "The device 'cqu' does not exist. Use one of these names: cpu, generic-fpga, generic-mobile.",
                "nearest": ["cpu"],
            }
        },
    )

    type: str = Field(description="Stable name of the error: /problems/<code>.")
    title: str
    status: int
    detail: str = Field(description="What is wrong, which value is wrong, what is allowed, and what to do next.")


Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
"""Strict: JSON booleans are rejected as numbers."""


class PreprocessingRequest(Strict):
    """How an image is converted to the model's input, if this differs from timm's configuration."""

    size: tuple[Whole, Whole, Whole] = Field(description="Size of the input: channels, height, width.")
    mean: tuple[Number, ...] = Field(description="Mean of each channel, for pixel values in [0, 1].")
    std: tuple[Number, ...] = Field(description="Standard deviation of each channel, for pixel values in [0, 1].")
    crop: Number = Field(
        default=1.0, gt=0, le=1, description="Share of the resized image that the centre crop keeps, in (0, 1]."
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_mode: Literal["center", "squash"] = "center"


class ModelRequest(Strict):
    """A timm model. In a multipart request, the part `checkpoint` holds the weights."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "deit_small_patch16_224", "pretrained": True}})

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=200, description="Name of the architecture in timm."
    )
    options: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, max_length=50, description="Arguments of timm.create_model."
    )
    pretrained: StrictBool = Field(
        default=True,
        description="Whether the server downloads timm's weights. It is ignored if the request has a checkpoint.",
    )
    preprocessing: PreprocessingRequest | None = Field(
        default=None, description="How images are preprocessed. Without it, the server uses timm's configuration."
    )
    classes: list[str] | None = Field(default=None, max_length=100_000, description="Names of the classes, in order.")
    weights: str | None = Field(
        default=None,
        max_length=200,
        description="Which weights to take if the checkpoint has several sets: `ema`, `model`, or the name of a set. "
        "null: the averaged weights.",
    )


class DatasetRequest(Strict):
    """A folder on the server."""

    model_config = ConfigDict(json_schema_extra={"example": {"path": "/data/imagenet/val"}})

    path: str = Field(
        min_length=1,
        max_length=4096,
        description="Path of the folder on the server. It must be below a folder that the operator allows.",
    )


class DeliverRequest(Strict):
    """Which trial to deliver."""

    model_config = ConfigDict(json_schema_extra={"example": {"trial": 7}})

    trial: int = Field(ge=0, description="Number of a finished trial of the job.")


class ModelView(BaseModel):
    """A model."""

    id: str
    name: str
    description: ModelDescription
    created_at: datetime

    @classmethod
    def of(cls, row: ModelRow) -> "ModelView":
        description = ModelDescription.from_json(row.description)
        return cls(id=row.id, name=row.name, description=description, created_at=row.created_at)


class DatasetView(BaseModel):
    """A data set."""

    id: str
    name: str
    description: DatasetDescription
    created_at: datetime

    @classmethod
    def of(cls, row: DatasetRow) -> "DatasetView":
        description = DatasetDescription.from_json(row.description)
        return cls(id=row.id, name=row.name, description=description, created_at=row.created_at)


class Progress(BaseModel):
    """The progress of a search."""

    trials_done: int
    trials_total: int
    best_score: float | None = Field(description="Best score so far. A larger score is better.")
    seconds_left: float | None = Field(
        description="Estimate of the seconds until the end. null: unknown, or the job has ended."
    )
    note: str | None = Field(
        default=None,
        description="What the job does now, or what it waits for, for example "
        "`measuring candidate 2 of at most 6, process 3 of at most 8`. null: there is nothing to say.",
    )

    @classmethod
    def of(cls, row: JobRow) -> "Progress":
        # The last estimate stays in the row of a job that ends before its last trial, and so does the last note.
        ended = {"seconds_left": None} if row.status in FINISHED else {}
        idle = {} if row.status in LEASED else {"note": None}
        return cls.model_validate({**row.progress, **ended, **idle})


class JobLinks(BaseModel):
    """Addresses of the resources and actions of a job."""

    self: str
    trials: str
    artifacts: str
    cancel: str
    deliver: str

    @classmethod
    def of(cls, job_id: str) -> "JobLinks":
        base = f"/v1/jobs/{job_id}"
        parts = {name: f"{base}/{name}" for name in ("trials", "artifacts", "cancel", "deliver")}
        return cls(self=base, **parts)


class JobView(BaseModel):
    """A job. If the job fails after its creation, `error` holds the reason, and reading the job still returns 200."""

    id: str
    name: str | None
    status: Status
    stage: str | None
    progress: Progress
    attempt: int = Field(description="How many attempts the job has started.")
    guarantee: Guarantee | None
    request: dict[str, Any] = Field(description="The body of POST /v1/jobs, with all defaults.")
    result: JobResult | None = Field(description="null until the job has succeeded.")
    error: Problem | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    parent: str | None = Field(description="Id of the job whose trial this job delivers; null for a job with a search.")
    links: JobLinks

    @classmethod
    def of(cls, row: JobRow) -> "JobView":
        same = ("id", "name", "status", "stage", "attempt", "guarantee", "request")
        times = ("created_at", "started_at", "finished_at")
        values = {name: getattr(row, name) for name in (*same, *times)}
        error = stored_problem(row.error) if row.error else None
        result = JobResult.from_json(row.result) if row.result else None
        more = {"progress": Progress.of(row), "parent": row.parent_job_id, "links": JobLinks.of(row.id)}
        return cls.model_validate({**values, **more, "result": result, "error": error})


class Validated(BaseModel):
    """The response to `validate_only=true`."""

    valid: bool | None = Field(
        description="true: the request is valid. null: it was not checked within the time limit, so it may be invalid. "
        "An invalid request is answered with a problem."
    )
    reason: str | None = Field(
        description="Why the request was not checked, and what to do next. null if it was checked."
    )
    description: JobDescription | None = Field(description="null if the request was not checked.")


class ArtifactView(BaseModel):
    """An artifact (finished file) of a job."""

    name: str
    bytes: int
    sha256: str = Field(description="SHA-256 of the file, in hexadecimal.")
    media_type: str
    href: str

    @classmethod
    def of(cls, artifact: Artifact, job_id: str) -> "ArtifactView":
        name = artifact.name
        href = f"/v1/jobs/{job_id}/artifacts/{name}"
        return cls(
            name=name, bytes=artifact.size_bytes, sha256=artifact.sha256, media_type=artifact.media_type, href=href
        )


class ModelPage(BaseModel):
    models: list[ModelView]
    next_page_token: str | None


class DatasetPage(BaseModel):
    datasets: list[DatasetView]
    next_page_token: str | None


class JobPage(BaseModel):
    jobs: list[JobView]
    next_page_token: str | None


class TrialPage(BaseModel):
    trials: list[Trial]
    next_page_token: str | None


class ArtifactList(BaseModel):
    artifacts: list[ArtifactView]


class DeviceList(BaseModel):
    devices: list[Device]


class MethodList(BaseModel):
    methods: list[Method]


class ServerInfo(BaseModel):
    """The version of the server, and the addresses of its lists."""

    version: str
    models: str = "/v1/models"
    datasets: str = "/v1/datasets"
    jobs: str = "/v1/jobs"
    devices: str = "/v1/devices"
    methods: str = "/v1/methods"
    description: str = "/openapi.json"


class Health(BaseModel):
    """The server is healthy: it answers, its database answers, and it runs jobs."""

    status: Literal["ok"]
    version: str
    jobs: dict[str, int] = Field(description="Number of unfinished jobs by status.")
    waits: str | None = Field(
        description="Why queued jobs cannot be started, for example because the disk is full. "
        "null: nothing prevents the start."
    )
