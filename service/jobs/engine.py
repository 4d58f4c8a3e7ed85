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
        if request.criterion is not None:
            self._check_criterion(request.criterion, methods[request.method])
        if request.space is not None:
            self._check_space(request.space, methods[request.method])
        if request.basis is not None:
            self._check_basis(request.basis, methods[request.method])

    def _check_criterion(self, criterion: str, method: dict[str, Any]) -> None:
        everywhere = {str(name) for other in self.methods() for name in other["criteria"]}
        require("criterion", criterion, sorted(everywhere))
        if criterion not in method["criteria"]:
            raise InvalidRequest(
                f"Method {method['name']!r} does not support the criterion {criterion!r}. "
                f"Choose one of: {', '.join(method['criteria'])}.",
                field="criterion",
                value=criterion,
                allowed=list(method["criteria"]),
            )

    def _check_basis(self, basis: str, method: dict[str, Any]) -> None:
        require("basis", basis, sorted({name for other in self.methods() for name in other["bases"]}))
        if basis not in method["bases"]:
            raise InvalidRequest(
                f"Method {method['name']!r} does not support the basis {basis!r}. "
                f"Choose one of: {', '.join(method['bases'])}.",
                field="basis",
                value=basis,
                allowed=list(method["bases"]),
            )

    def _check_space(self, space: str, method: dict[str, Any]) -> None:
        require("space", space, sorted({name for other in self.methods() for name in _spaces(other)}))
        if space not in _spaces(method):
            raise InvalidRequest(
                f"Method {method['name']!r} does not support the space {space!r}. "
                f"Choose one of: {', '.join(_spaces(method))}.",
                field="space",
                value=space,
                allowed=_spaces(method),
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
