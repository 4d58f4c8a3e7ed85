"""The error type of the client, which has the fields of the server's problem+json (RFC 9457)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

MEMBERS = ("type", "title", "status", "detail", "instance")


@dataclass(frozen=True)
class Problem:
    """A description of an error.

    `type` is stable, `detail` says what went wrong and what to do next, and `facts` holds values for programs.
    """

    type: str
    title: str
    status: int | None
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The last part of `type`, for example `impossible-budget`."""
        return self.type.rstrip("/").rsplit("/", 1)[-1]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Problem":
        """Create a problem from a problem+json body, or from the `error` of a failed job."""
        kind = str(value.get("type") or value.get("code") or "about:blank")
        title = str(value.get("title") or kind.rstrip("/").rsplit("/", 1)[-1].replace("-", " ").capitalize())
        facts = {name: item for name, item in value.items() if name not in (*MEMBERS, "code", "facts")}
        inner = value.get("facts")
        facts.update(inner if isinstance(inner, Mapping) else {})
        return cls(kind, title, value.get("status"), str(value.get("detail") or title), facts)

    def to_json(self) -> dict[str, Any]:
        """Return the problem+json object."""
        core = {"type": self.type, "title": self.title, "status": self.status, "detail": self.detail}
        return {**self.facts, **core}


class VitfitError(Exception):
    """Any failure of a client operation, whether it happened on the server, on the network or on this machine."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem

    @classmethod
    def local(cls, code: str, detail: str, **facts: Any) -> "VitfitError":
        """Create an error that no server has reported. Its `status` is None."""
        return cls(Problem(f"/problems/{code}", code.replace("-", " ").capitalize(), None, detail, facts))

    @property
    def type(self) -> str:
        """The stable name of the problem, for example `/problems/impossible-budget`."""
        return self.problem.type

    @property
    def title(self) -> str:
        """A short name of the problem for people."""
        return self.problem.title

    @property
    def status(self) -> int | None:
        """The HTTP status; None if the server did not answer."""
        return self.problem.status

    @property
    def detail(self) -> str:
        """A sentence that says what went wrong, with which value, what is allowed, and what to do next."""
        return self.problem.detail

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers and names in `detail`, for programs."""
        return self.problem.facts


def error_from_response(response: httpx.Response) -> VitfitError:
    """Create the error that a response with status 400 or higher describes. The body must already be read."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and ("type" in body or "detail" in body):
        problem = Problem.from_json({**body, "status": response.status_code})
        return VitfitError(problem)
    detail = (
        f"The answer to {response.request.method} {response.request.url} was {response.status_code} "
        f"{response.reason_phrase}, without an explanation. Check that a vitfit server is at this address."
    )
    return VitfitError(Problem("about:blank", response.reason_phrase, response.status_code, detail))
