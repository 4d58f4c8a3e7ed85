"""Links in the OpenAPI document.

A link says which operation can follow a response, and which values of the response it needs. People read the links, and
test tools follow them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

ID: Final = "$response.body#/id"
JOB: Final = "/v1/jobs/{job_id}"
BUDGET: Final[dict[str, Any]] = {"metric": "macs_keep", "limit": 0.6}
PLAIN: Final[dict[str, Any]] = {
    "dataset": None,
    "budgets": [BUDGET],
    "trials": 3,
    "method": "joint",
    "criterion": None,
    "space": None,
    "target": None,
    "objective": "score",
    "max_loss": None,
    "gates": {"epochs": 0},
    "time_limit_s": None,
}
"""Request of a job that works with every model. Links use it as the body of `POST /v1/jobs`."""


@dataclass(frozen=True)
class Link:
    """A link from a response to an operation.

    source: the response, as "METHOD path status".
    target: the operation, as "METHOD path".
    parameters: values of the operation's parameters; runtime expressions such as `$response.body#/id` are allowed.
    body: request body of the operation; None if it has none.
    """

    source: str
    target: str
    parameters: dict[str, str] = field(default_factory=dict)
    body: Any = None


def _of_noun(path: str, parameter: str, expression: str) -> Iterator[Link]:
    """Yield the links from a created resource to the operations that read and delete it."""
    for method in ("GET", "DELETE"):
        yield Link(f"POST {path} 201", f"{method} {path}/{{{parameter}}}", {parameter: expression})


def _of_job(source: str, expression: str) -> Iterator[Link]:
    """Yield the links from a job to the operations that read, follow, cancel, deliver and delete it."""
    for part in ("", "/trials", "/log", "/artifacts", "/events"):
        yield Link(source, f"GET {JOB}{part}", {"job_id": expression})
    yield Link(source, f"GET {JOB}/artifacts/{{name}}", {"job_id": expression, "name": "model.onnx"})
    yield Link(source, f"POST {JOB}/cancel", {"job_id": expression})
    yield Link(source, f"POST {JOB}/deliver", {"job_id": expression}, {"trial": 0})
    yield Link(source, f"DELETE {JOB}", {"job_id": expression})


def _links() -> Iterator[Link]:
    yield from _of_noun("/v1/models", "model_id", ID)
    yield from _of_noun("/v1/datasets", "dataset_id", ID)
    yield from _of_noun("/v1/devices", "name", "$response.body#/name")
    yield Link("POST /v1/models 201", "POST /v1/jobs", body={**PLAIN, "model": ID})
    for source in ("POST /v1/jobs 202", f"POST {JOB}/deliver 202"):
        yield from _of_job(source, ID)
    yield Link(
        f"GET {JOB}/artifacts 200",
        f"GET {JOB}/artifacts/{{name}}",
        {"job_id": "$request.path.job_id", "name": "$response.body#/artifacts/0/name"},
    )
    session = {"device": "$response.body#/device", "Vitfit-Session": "$response.body#/session"}
    yield Link("POST /v1/agents 201", "GET /v1/agents/{device}/task", {**session, "wait_s": "0"})
    yield Link("POST /v1/agents 201", "GET /v1/devices/{name}", {"name": "$response.body#/device"})


LINKS: Final = tuple(_links())


def add_links(schema: dict[str, Any]) -> None:
    """Add all links to the responses of an OpenAPI document, in place."""
    for link in LINKS:
        (method, path, status), (verb, target) = link.source.split(), link.target.split()
        operation = schema["paths"][target][verb.lower()]
        found: dict[str, Any] = {"operationId": operation["operationId"], "description": operation["summary"]}
        if link.parameters:
            found["parameters"] = link.parameters
        if link.body is not None:
            found["requestBody"] = link.body
        answer = schema["paths"][path][method.lower()]["responses"][status]
        answer.setdefault("links", {})[operation["operationId"]] = found
