"""One error type, in the shape of the server's problem+json (RFC 9457)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

MEMBERS = ("type", "title", "status", "detail", "instance")


@dataclass(frozen=True)
class Problem:
    """What went wrong: a stable `type`, a `detail` that says what to do next, and `facts` for programs."""

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
        """From a problem+json body, or from the `error` of a failed job."""
        kind = str(value.get("type") or value.get("code") or "about:blank")
        title = str(value.get("title") or kind.rstrip("/").rsplit("/", 1)[-1].replace("-", " ").capitalize())
        facts = {name: item for name, item in value.items() if name not in (*MEMBERS, "code", "facts")}
        facts.update(value.get("facts") or {})
        return cls(kind, title, value.get("status"), str(value.get("detail") or title), facts)

    def to_json(self) -> dict[str, Any]:
        """The problem+json object again."""
        core = {"type": self.type, "title": self.title, "status": self.status, "detail": self.detail}
        return {**self.facts, **core}


class VitfitError(Exception):
    """Anything that keeps the client from doing what was asked, on the server, on the way or on this machine."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem

    @classmethod
    def local(cls, code: str, detail: str, **facts: Any) -> "VitfitError":
        """An error that no server reported: `status` is None."""
        return cls(Problem(f"/problems/{code}", code.replace("-", " ").capitalize(), None, detail, facts))

    @property
    def type(self) -> str:
        """The stable name of the problem, for example `/problems/impossible-budget`."""
        return self.problem.type

    @property
    def title(self) -> str:
        """The problem in a few words."""
        return self.problem.title

    @property
    def status(self) -> int | None:
        """The HTTP status; None when the server did not answer."""
        return self.problem.status

    @property
    def detail(self) -> str:
        """What, which value, what is allowed, what to do next."""
        return self.problem.detail

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers and names behind `detail`."""
        return self.problem.facts


def error_from_response(response: httpx.Response) -> VitfitError:
    """The error that an answer of status 400 or more describes. The body must have been read."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and ("type" in body or "detail" in body):
        problem = Problem.from_json({"status": response.status_code, **body})
        return VitfitError(problem)
    detail = (
        f"{response.request.method} {response.request.url} was answered with {response.status_code} "
        f"{response.reason_phrase} and no explanation. Is there a vitfit server at this address?"
    )
    return VitfitError(Problem("about:blank", response.reason_phrase, response.status_code, detail))
