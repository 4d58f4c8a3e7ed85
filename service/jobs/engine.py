"""The engine that runs jobs: the real pipeline, or the public fake. Chosen by `Settings.engine`.

`catalog` is for the web process and imports nothing heavy; `load_run` imports torch with the real engine and belongs
into a worker.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from vitfit.report import JobResult

from models.errors import InvalidRequest, UnknownName
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.jobs.journal import Journal

EngineName = Literal["pipeline", "fake"]


class Run(Protocol):
    """`service.pipeline.pipeline.run`: a whole job.

    deliver: the number of a finished trial to deliver instead of searching. allowed: folders that a data set may name by
    path. cluster: the address of a Ray cluster for trials.
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
    """What the engine offers. Both functions give JSON objects that have at least `name`."""

    devices: Callable[[], Sequence[dict[str, Any]]]
    methods: Callable[[], Sequence[dict[str, Any]]]

    def check(self, request: JobRequest) -> None:
        """Raises: UnknownName for a device, method, criterion or space that does not exist."""
        devices = [str(device["name"]) for device in self.devices()]
        for budget in request.budgets:
            require("device", budget.device, devices)
        methods = {str(method["name"]): method for method in self.methods()}
        require("method", request.method, list(methods))
        if request.criterion is not None:
            self._check_criterion(request.criterion, methods[request.method])
        if request.space is not None:
            self._check_space(request.space, methods[request.method])

    def _check_criterion(self, criterion: str, method: dict[str, Any]) -> None:
        everywhere = {str(name) for other in self.methods() for name in other["criteria"]}
        require("criterion", criterion, sorted(everywhere))
        if criterion not in method["criteria"]:
            raise InvalidRequest(
                f"Method {method['name']!r} does not rank by {criterion!r}. It takes: {', '.join(method['criteria'])}.",
                field="criterion",
                value=criterion,
                allowed=list(method["criteria"]),
            )

    def _check_space(self, space: str, method: dict[str, Any]) -> None:
        require("space", space, sorted({name for other in self.methods() for name in _spaces(other)}))
        if space not in _spaces(method):
            raise InvalidRequest(
                f"Method {method['name']!r} does not search in {space!r}. It takes: {', '.join(_spaces(method))}.",
                field="space",
                value=space,
                allowed=_spaces(method),
            )


def _spaces(method: dict[str, Any]) -> list[str]:
    return [str(name) for name in (method["space"], *method["other_spaces"])]


def require(noun: str, name: str, known: Sequence[str]) -> None:
    """Raises: UnknownName, with the nearest names, unless `name` is known."""
    if name not in known:
        raise UnknownName(noun, name, known)


def catalog(engine: EngineName) -> Catalog:
    """Devices and methods of an engine."""
    if engine == "fake":
        from service.jobs import fake_engine

        return Catalog(fake_engine.describe_devices, fake_engine.describe_methods)
    devices, methods = importlib.import_module("latency.devices.devices"), importlib.import_module("search.methods")
    return Catalog(devices.describe_devices, methods.describe_methods)


def load_run(engine: EngineName) -> Run:
    """The function that runs a job. Imports the engine."""
    module = "service.jobs.fake_engine" if engine == "fake" else "service.pipeline.pipeline"
    return cast(Run, importlib.import_module(module).run)


def validate_command(engine: EngineName) -> tuple[str, ...]:
    """The command that reads one JSON object and answers with one (see service/jobs/validator.py)."""
    module = "service.jobs.fake_engine" if engine == "fake" else "service.pipeline.validate_job"
    return (sys.executable, "-m", module)
