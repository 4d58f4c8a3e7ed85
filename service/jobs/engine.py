"""Choose the engine that runs jobs: the pipeline, or the fake engine for tests. `Settings.engine` names it.

The web process calls `catalog`, which imports no heavy packages. A worker calls `load_run`. For the pipeline, this
imports torch.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from vitfit.report import JobResult

from models.errors import InvalidRequest, UnknownName
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.jobs.journal import Journal
from service.jobs.quick_checks import check_keeps, check_threads

EngineName = Literal["pipeline", "fake"]


class Run(Protocol):
    """A function that runs a complete job, such as `service.pipeline.pipeline.run`.

    deliver: number of the finished trial to deliver; None: the job searches, and delivers the best trial. allowed:
    folders below which a data set may be named by its path. cluster: address of the Ray cluster that runs the trials;
    None: this process runs them.
    """

    def __call__(
        self,
        request: JobRequest,
        files: JobFiles,
        journal: Journal,
        deliver: int | None = None,
        *,
        allowed: Sequence[Path] = (),
        cluster: str | None = None,
    ) -> JobResult: ...


@dataclass(frozen=True)
class Catalog:
    """The offer of an engine: its devices and methods. The JSON objects of both functions have at least `name`."""

    devices: Callable[[], Sequence[dict[str, Any]]]
    methods: Callable[[], Sequence[dict[str, Any]]]

    def check(self, request: JobRequest) -> None:
        """Check the names in a request, and the numbers that need no model.

        Raises: UnknownName for a device, method, criterion, basis or space that does not exist; InvalidRequest for a
        criterion, basis or space that the method does not support, and for a number that is not allowed;
        DeviceUnavailable for more threads than the device has.
        """
        devices = {str(device["name"]): device for device in self.devices()}
        for budget in request.budgets:
            require("device", budget.device, list(devices))
            check_threads(budget, devices[budget.device])
        check_keeps(request)
        methods = {str(method["name"]): method for method in self.methods()}
        require("method", request.method, list(methods))
        method = methods[request.method]
        self._check_supported("criterion", request.criterion, method, lambda offer: offer["criteria"])
        self._check_supported("space", request.space, method, _spaces)
        self._check_supported("basis", request.basis, method, lambda offer: offer["bases"])

    def _check_supported(
        self, noun: str, name: str | None, method: dict[str, Any], names_of: Callable[[dict[str, Any]], Sequence[str]]
    ) -> None:
        """Check that a name exists, and that the method supports it. noun: the field of the request.

        names_of: returns the names that a method supports.
        """
        if name is None:
            return
        require(noun, name, sorted({str(known) for other in self.methods() for known in names_of(other)}))
        allowed = list(names_of(method))
        if name not in allowed:
            raise InvalidRequest(
                f"Method {method['name']!r} does not support the {noun} {name!r}. Choose one of: {', '.join(allowed)}.",
                field=noun,
                value=name,
                allowed=allowed,
            )


def _spaces(method: dict[str, Any]) -> list[str]:
    return [str(name) for name in (method["space"], *method["other_spaces"])]


def require(noun: str, name: str, known: Sequence[str]) -> None:
    """Check that `name` is known. noun: the kind of the name. Raises: UnknownName, which lists the nearest names."""
    if name not in known:
        raise UnknownName(noun, name, known)


def catalog(engine: EngineName) -> Catalog:
    """Return the offer of an engine."""
    if engine == "fake":
        from service.jobs import fake_engine

        return Catalog(fake_engine.describe_devices, fake_engine.describe_methods)
    devices, methods = importlib.import_module("latency.devices.devices"), importlib.import_module("search.methods")
    return Catalog(devices.describe_devices, methods.describe_methods)


def load_run(engine: EngineName) -> Run:
    """Import the engine, and return its function that runs a job."""
    module = "service.jobs.fake_engine" if engine == "fake" else "service.pipeline.pipeline"
    return cast(Run, importlib.import_module(module).run)


def validate_module(engine: EngineName) -> str:
    """Return the module whose `main` validates. It reads and writes one JSON object (service/jobs/validator.py)."""
    return "service.jobs.fake_engine" if engine == "fake" else "service.pipeline.validate_job"
