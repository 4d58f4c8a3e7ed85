"""The answers of the server as frozen dataclasses. Unknown fields, which a newer server may send, are ignored."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from vitfit.errors import Problem, VitfitError

FINISHED = ("succeeded", "failed", "canceled")


class Result:
    """Base class of the results. `from_json` reads the known fields, and `to_json` returns plain values."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Create the result from JSON. Raises: VitfitError if a field without a default is missing."""
        fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        known = {name: value[name] for name in fields if value.get(name) is not None}
        for name, item in fields.items():
            if name not in known and item.default is item.default_factory is dataclasses.MISSING:
                raise VitfitError.local(
                    "unexpected-answer",
                    f"The server sent a {cls.__name__.lower()} without {name!r}. Client and server must be of one version.",
                )
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, also for nested results."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Model(Result):
    """An uploaded model; `description` has its size, tokens, heads and MACs."""

    id: str
    name: str
    description: dict[str, Any] = field(default_factory=dict)
    created_at: str | None = None


@dataclass(frozen=True)
class Dataset(Result):
    """An uploaded data set; `description` counts images, classes and splits."""

    id: str
    name: str | None = None
    description: dict[str, Any] = field(default_factory=dict)
    created_at: str | None = None


@dataclass(frozen=True)
class Progress(Result):
    """The progress of a search. A larger `best_score` is better. `seconds_left` is an estimate."""

    trials_done: int = 0
    trials_total: int = 0
    best_score: float | None = None
    seconds_left: float | None = None


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
    result: dict[str, Any] | None = None
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

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Job":
        """Create the job from the answer of `GET /v1/jobs/{id}`."""
        parts: dict[str, Any] = dict(value)
        parts["progress"] = Progress.from_json(value.get("progress") or {})
        parts["error"] = Problem.from_json(value["error"]) if value.get("error") else None
        return super().from_json(parts)


@dataclass(frozen=True)
class Trial(Result):
    """One policy that was tried. `costs` has one value per budget; `origin` is "predicted" or "measured"."""

    number: int
    score: float
    accuracy: float | None = None
    agreement: float | None = None
    costs: dict[str, float] = field(default_factory=dict)
    origin: str | None = None
    seconds: float | None = None
    start: bool = False
    structure_key: str | None = None
    policy: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact(Result):
    """A finished file of a job. `sha256` is in hexadecimal."""

    name: str
    bytes: int
    sha256: str
    media_type: str = "application/octet-stream"
    href: str = ""


@dataclass(frozen=True)
class Device(Result):
    """A device: either reachable, so that latency is measured, or a profile from which latency is predicted."""

    name: str
    kind: str = "profile"
    reachable: bool = False
    threads: int | None = None
    precision: str | None = None
    description: str = ""
    source: str | None = None


@dataclass(frozen=True)
class Method(Result):
    """A compression method. `axes` names what it prunes, and `criteria` the importance criteria that it supports."""

    name: str
    title: str = ""
    axes: list[str] = field(default_factory=list)
    criteria: list[str] = field(default_factory=list)
    training: str | None = None
