"""The answers of the server as frozen dataclasses."""

from dataclasses import dataclass, field
from typing import Any

from vitfit.errors import Problem
from vitfit.report import JobResult
from vitfit.result import Result

FINISHED = ("succeeded", "failed", "canceled")


@dataclass(frozen=True)
class ModelDescription(Result):
    """What the server has found in a model.

    image: (channels, height, width). classes: 0 for a model without a classifier. heads: of the first block. width: of
    the residual stream in the first block. tokens: with class tokens. key: equal for models of the same structure.
    preprocessing: how an image is prepared. assumptions: sentences that say what vitfit has assumed, because no file
    contains it.
    """

    name: str
    params: int
    macs: int
    image: tuple[int, int, int]
    classes: int
    blocks: int
    heads: int
    width: int
    tokens: int
    key: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model(Result):
    """An uploaded model."""

    id: str
    name: str
    description: ModelDescription | None = None
    created_at: str | None = None


@dataclass(frozen=True)
class DatasetDescription(Result):
    """What the server has found in a data set. classes: None without labels. splits: number of images of each split."""

    images: int
    labelled: bool
    classes: int | None = None
    splits: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset(Result):
    """An uploaded data set."""

    id: str
    name: str | None = None
    description: DatasetDescription | None = None
    created_at: str | None = None


@dataclass(frozen=True)
class Progress(Result):
    """The progress of a search. A larger `best_score` is better.

    seconds_left: an estimate; None if it is unknown, or if the job has ended. note: what the job does now, or what it
    waits for.
    """

    trials_done: int = 0
    trials_total: int = 0
    best_score: float | None = None
    seconds_left: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Budget:
    """One upper limit.

    metric: `latency_ms`, `latency_keep`, `macs`, `macs_keep`, `params`, `params_keep`, `file_bytes`, `file_keep`,
    `memory_bytes` or `memory_keep`.

    The metrics `*_keep` are fractions of the original's value. `device` and `statistic` apply only to latency;
    `threads` and `batch` apply to latency and memory. statistic: p50, or, with the method spvit, mean or p95 over
    images.
    """

    metric: str
    limit: float
    device: str = "cpu"
    threads: int = 1
    batch: int = 1
    statistic: str = "p50"

    def to_json(self) -> dict[str, Any]:
        """Return the budget as `POST /v1/jobs` takes it."""
        if not self.metric.startswith(("latency", "memory")):
            return {"metric": self.metric, "limit": self.limit}
        setting = {"threads": self.threads, "batch": self.batch}
        body = {"metric": self.metric, "limit": self.limit, "device": self.device, "setting": setting}
        return body | ({} if self.statistic == "p50" else {"statistic": self.statistic})


@dataclass(frozen=True)
class JobDescription(Result):
    """What the server has found in a job that it has checked, before it has measured anything.

    criterion, space: those that the job uses. warnings: sentences.
    """

    model: ModelDescription
    dataset: DatasetDescription
    criterion: str
    space: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation(Result):
    """The answer to a request that was only checked.

    valid: None if the request was not checked within the time limit, so it may be invalid. reason: why it was not
    checked, and what to do next.
    """

    valid: bool | None = None
    reason: str | None = None
    description: JobDescription | None = None


@dataclass(frozen=True)
class Job(Result):
    """A compression job, with its state and its result."""

    id: str
    status: str
    name: str | None = None
    stage: str | None = None
    progress: Progress = field(default_factory=Progress)
    attempt: int = 0
    guarantee: str | None = None
    request: dict[str, Any] = field(default_factory=dict)
    result: JobResult | None = None
    error: Problem | None = None
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    parent: str | None = None
    links: dict[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the status can no longer change."""
        return self.status in FINISHED


@dataclass(frozen=True)
class Artifact(Result):
    """A finished file of a job. `sha256` is in hexadecimal."""

    name: str
    bytes: int
    sha256: str
    media_type: str = "application/octet-stream"
    href: str = ""
