"""`Client`, which offers the REST interface of a vitfit server as typed methods."""

import json
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx

from vitfit.connection import Connection, retry_after_s
from vitfit.download import OnBytes, download
from vitfit.errors import VitfitError
from vitfit.model_source import ModelSource, packed
from vitfit.offers import Device, Method
from vitfit.result import Result
from vitfit.results import Artifact, Budget, Dataset, Job, Model, Validation
from vitfit.trial import Trial

DEFAULT_SERVER = "http://127.0.0.1:8000"
POLL_S = 1.0
# A registered model may fetch its weights before the server answers.
UPLOAD_TIMEOUT_S = 400.0
R = TypeVar("R", bound=Result)


class JobOptions(TypedDict, total=False):
    """Further options of a job, besides model, budgets and data. The server has a default for each omitted option."""

    method: str
    criterion: str
    basis: str
    space: str
    target: str
    precisions: list[str]
    trials: int
    parallel_trials: int
    trial_resources: dict[str, object]
    seed: int
    recovery: bool
    keep_spatial: bool
    heal: dict[str, float]
    finetune: dict[str, float]
    gates: dict[str, float]
    objective: str
    max_loss: float
    name: str
    priority: int
    time_limit_s: float


class Client:
    """A client of one vitfit server.

    After a network error, a request is repeated up to `retries` times, with growing pauses. Every failure is raised as
    a `VitfitError`.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        retries: int = 4,
        timeout_s: float = 60.0,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(server, retries, timeout_s, transport, token=token)

    @property
    def server(self) -> str:
        """The address of the server."""
        return self._connection.server

    def close(self) -> None:
        """Close the connections. `with Client() as client:` does this too."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # Models and data

    def upload_model(  # noqa: PLR0917  programs call it by position
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        checkpoint: str | Path | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        pretrained: bool | None = None,
        classes: Sequence[str] | None = None,
        *,
        weights: str | None = None,
    ) -> Model:
        """Register a model.

        checkpoint: weights of a timm model (.safetensors or .pth), an ONNX file, a zip file, or a folder that Hugging
        Face's `save_pretrained` has written. For the last three, `name` is any name. Without a checkpoint, the
        server uses the pretrained weights, unless `pretrained` is False. weights: which of several sets of weights of a
        checkpoint: "ema", "model", or the name of a set.
        """
        if pretrained is None:
            pretrained = checkpoint is None
        config = {
            "name": name,
            "options": dict(options or {}),
            "pretrained": pretrained,
            "preprocessing": dict(preprocessing) if preprocessing else None,
            "classes": list(classes) if classes else None,
            **({"weights": weights} if weights else {}),
        }
        if checkpoint is None:
            return Model.from_json(self._post("/v1/models", json=config, timeout=UPLOAD_TIMEOUT_S))
        with tempfile.TemporaryDirectory(prefix="vitfit-") as folder:
            source = Path(checkpoint) if Path(checkpoint).is_dir() else _existing(checkpoint)
            path = packed(source, Path(folder))
            return Model.from_json(
                self._post(
                    "/v1/models",
                    timeout=UPLOAD_TIMEOUT_S,
                    data={"config": json.dumps(config)},
                    files=lambda: {"checkpoint": (path.name, path.open("rb"), "application/octet-stream")},
                )
            )

    def upload_source(self, source: ModelSource) -> Model:
        """Register the model that a source describes, as `vitfit.model_source.model_source` returns it."""
        return self.upload_model(
            source.name,
            source.options,
            source.checkpoint,
            source.preprocessing,
            pretrained=source.pretrained,
            classes=source.classes,
            weights=source.weights,
        )

    def upload_dataset(self, path: str | Path) -> Dataset:
        """Upload an .npz, zip or tar file.

        A folder is not uploaded but registered by its path, see `register_dataset`.
        """
        if Path(path).is_dir():
            return self.register_dataset(str(Path(path).resolve()))
        file = _existing(path)
        answer = self._post(
            "/v1/datasets",
            timeout=UPLOAD_TIMEOUT_S,
            files=lambda: {"file": (file.name, file.open("rb"), "application/octet-stream")},
        )
        return Dataset.from_json(answer)

    def register_dataset(self, folder: str) -> Dataset:
        """Register a folder on the server. It must be below a root that the operator allows."""
        return Dataset.from_json(self._post("/v1/datasets", json={"path": folder}, timeout=UPLOAD_TIMEOUT_S))

    def models(self) -> Iterator[Model]:
        """Iterate over all models."""
        return self._paged("/v1/models", "models", Model)

    def datasets(self) -> Iterator[Dataset]:
        """Iterate over all data sets."""
        return self._paged("/v1/datasets", "datasets", Dataset)

    # Jobs

    def submit(
        self,
        model: Model | str,
        budgets: Iterable[Budget] = (),
        *,
        dataset: Dataset | str | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Queue a compression job.

        Without budgets, it needs `objective="latency"` and a `max_loss`: it then lowers the latency on the server's
        CPU. The request carries an idempotency key, so a repeated request never creates a second job.
        """
        body = _job_body(model, budgets, dataset, options)
        return Job.from_json(self._post("/v1/jobs", key=idempotency_key, json=body))

    def validate(
        self,
        model: Model | str,
        budgets: Iterable[Budget] = (),
        *,
        dataset: Dataset | str | None = None,
        **options: Unpack[JobOptions],
    ) -> Validation:
        """Check a request as `submit` does, but create nothing. Return what the server has found in it."""
        body = _job_body(model, budgets, dataset, options)
        return Validation.from_json(self._post("/v1/jobs", params={"validate_only": "true"}, json=body))

    def get(self, job: Job | str) -> Job:
        """Return the current state of a job."""
        return Job.from_json(self._connection.json("GET", _job_path(job)))

    def jobs(self, status: str | None = None, page_size: int = 50) -> Iterator[Job]:
        """Iterate over all jobs, newest first. Each page is fetched when the iteration reaches it."""
        return self._paged("/v1/jobs", "jobs", Job, page_size, query={"status": status} if status else {})

    def watch(self, job: Job | str, timeout_s: float | None = None, patience_s: float = 60.0) -> Iterator[Job]:
        """Poll a job and yield it each time, until it is finished. The server's `Retry-After` sets the interval.

        If the server does not answer for less than `patience_s` seconds, for example during a restart, the method waits
        for it, because the job survives a restart.

        Raises: VitfitError `timeout` after `timeout_s` seconds; the job itself continues.
        """
        started = answered = time.monotonic()
        while True:
            pause = POLL_S
            try:
                response = self._connection.request("GET", _job_path(job))
            except VitfitError as error:
                if error.problem.code != "unreachable" or time.monotonic() - answered > patience_s:
                    raise
            else:
                answered = time.monotonic()
                pause = retry_after_s(response, default=POLL_S)
                current = Job.from_json(response.json())
                yield current
                if current.finished:
                    return
            if timeout_s is not None and time.monotonic() - started + pause > timeout_s:
                raise VitfitError.local(
                    "timeout", f"{_id(job)} was not finished after {timeout_s:g} s. It continues. Watch it again later."
                )
            time.sleep(pause)

    def trials(self, job: Job | str, page_size: int = 200) -> Iterator[Trial]:
        """Iterate over the trials of a job, ordered by number."""
        return self._paged(f"{_job_path(job)}/trials", "trials", Trial, page_size)

    def deliver(self, job: Job | str, trial: int) -> Job:
        """Export another trial of the same search. Return the child job that creates the files."""
        return Job.from_json(self._post(f"{_job_path(job)}/deliver", json={"trial": trial}))

    def cancel(self, job: Job | str) -> Job:
        """Cancel a job. The call can be repeated, and does not change a finished job."""
        return Job.from_json(self._post(f"{_job_path(job)}/cancel"))

    def delete(self, job: Job | str) -> None:
        """Delete a finished job and its files."""
        self._connection.request("DELETE", _job_path(job))

    # Files

    def artifacts(self, job: Job | str) -> list[Artifact]:
        """Return the artifacts (finished files) of a job."""
        return list(self._paged(f"{_job_path(job)}/artifacts", "artifacts", Artifact))

    def download(
        self, job: Job | str, artifact: Artifact | str, destination: str | Path, on_bytes: OnBytes | None = None
    ) -> Path:
        """Download one artifact and check its SHA-256.

        A partial file `destination.part` of an earlier attempt is resumed.
        If `destination` is a folder, the file gets the name of the artifact. `on_bytes` is called with the number of
        bytes on the disk.
        """
        if isinstance(artifact, str):
            artifact = self._artifact(job, artifact)
        target = Path(destination)
        if target.is_dir():
            target = target / _plain_name(artifact.name)
        if not artifact.href:
            raise VitfitError.local(
                "no-address",
                f"The server lists {artifact.name} without an address (href). "
                "Install the same version of vitfit on client and server.",
            )
        return download(self._connection, artifact, target, on_bytes)

    def _artifact(self, job: Job | str, name: str) -> Artifact:
        listed = {artifact.name: artifact for artifact in self.artifacts(job)}
        if name not in listed:
            known = ", ".join(sorted(listed)) or "none yet"
            raise VitfitError.local(
                "unknown-name", f"{_id(job)} has no artifact {name!r}. Its artifacts are: {known}.", name=name
            )
        return listed[name]

    # The server

    def devices(self) -> list[Device]:
        """Return the devices whose latency can be measured or predicted."""
        return list(self._paged("/v1/devices", "devices", Device))

    def add_device(self, profile: dict[str, Any]) -> Device:
        """Add a device to the server. profile: as described in docs/devices.md."""
        return Device.from_json(self._connection.json("POST", "/v1/devices", json=profile))

    def delete_device(self, name: str) -> None:
        """Delete a device that was added."""
        self._connection.request("DELETE", f"/v1/devices/{quote(name, safe='')}")

    def methods(self) -> list[Method]:
        """Return the compression methods."""
        return list(self._paged("/v1/methods", "methods", Method))

    def health(self) -> dict[str, Any]:
        """Return the answer of `/healthz`. Raises: VitfitError if the server is not healthy."""
        answer: dict[str, Any] = self._connection.json("GET", "/healthz")
        return answer

    def _post(self, path: str, key: str | None = None, **extra: Any) -> Any:
        """Send a POST that is safe to repeat, because all repeats carry the same idempotency key."""
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._connection.json("POST", path, headers=headers, **extra)

    def _paged(
        self,
        path: str,
        noun: str,
        kind: type[R],
        page_size: int | None = None,
        *,
        query: Mapping[str, str] | None = None,
    ) -> Iterator[R]:
        """Yield the items of all pages."""
        params: dict[str, Any] = dict(query or {})
        if page_size:
            params["page_size"] = page_size
        while True:
            body = self._connection.json("GET", path, params=params)
            if not isinstance(body, dict) or noun not in body:
                raise VitfitError.local(
                    "unexpected-answer",
                    f"{self.server}{path} did not answer with a list of {noun}. "
                    f"Check that {self.server} is the address of a vitfit server.",
                )
            yield from (kind.from_json(row) for row in body[noun])
            if not body.get("next_page_token"):
                return
            params["page_token"] = body["next_page_token"]


def _id(thing: Model | Dataset | Job | str) -> str:
    return thing if isinstance(thing, str) else thing.id


def _job_path(job: Job | str) -> str:
    name = _id(job)
    if not name or not all(letter.isalnum() or letter in "_-" for letter in name):
        raise VitfitError.local("unknown-name", f"{name!r} is not the id of a job. Ids look like job_1a2b3c.")
    return f"/v1/jobs/{name}"


def _job_body(
    model: Model | str, budgets: Iterable[Budget], dataset: Dataset | str | None, options: JobOptions
) -> dict[str, Any]:
    limits = [budget.to_json() for budget in budgets]
    body: dict[str, Any] = {"model": _id(model), **({"budgets": limits} if limits else {})}
    if dataset is not None:
        body["dataset"] = _id(dataset)
    return {**body, **options}


def _existing(path: str | Path) -> Path:
    file = Path(path)
    if not file.is_file():
        raise VitfitError.local(
            "no-such-file", f"There is no file {str(path)!r} to upload. Give the path of a file.", path=str(path)
        )
    return file


def _plain_name(name: str) -> str:
    """Return the name if it is a plain file name.

    The name comes from another machine, so it must not lead out of the destination folder.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or name.endswith(".part"):
        raise VitfitError.local(
            "unsafe-name",
            f"The server lists an artifact with the name {name!r}, which is not a plain file name. "
            "It is not downloaded. Check the server.",
        )
    return name
