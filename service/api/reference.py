"""Render the OpenAPI document as one HTML page. The page needs no script and loads nothing from other hosts."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

TEMPLATES: Final = Path(__file__).parent / "templates"
FIRST_ERROR: Final = 400
LIMITS: Final = {
    "default": "Default: {}.",
    "minimum": "At least {}.",
    "exclusiveMinimum": "More than {}.",
    "maximum": "At most {}.",
    "exclusiveMaximum": "Less than {}.",
    "minLength": "At least {} characters.",
    "maxLength": "At most {} characters.",
    "minItems": "At least {} items.",
    "maxItems": "At most {} items.",
    "pattern": "Pattern: {}",
}
"""The keywords of a JSON schema that the page shows, and their sentences."""


@dataclass(frozen=True)
class Operation:
    """One operation of the API, as the page shows it. examples: calls of curl, one for each media type of the body."""

    anchor: str
    title: str
    summary: str
    description: str
    needs_token: bool
    parameters: list[dict[str, Any]]
    bodies: dict[str, Any]
    answers: dict[str, Any]
    problems: dict[str, Any]
    examples: list[str]


def reference(document: dict[str, Any], base: str) -> str:
    """Return the page. document: the OpenAPI document. base: the address of the server, for the examples."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    tags: dict[str, list[Operation]] = {}
    for path, methods in document["paths"].items():
        for method, found in methods.items():
            for tag in found.get("tags", ["other"]):
                tags.setdefault(tag, []).append(_operation(path, method, found, schemas))
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    return environment.get_template("reference.html").render(
        version=document["info"]["version"],
        description=document["info"]["description"],
        base=base.rstrip("/"),
        tags=tags,
        schemas=dict(sorted(schemas.items())),
        prose=prose,
        limits=limits,
    )


def prose(text: str | None) -> Markup:
    """Return a description as HTML: its paragraphs, and `code` between backticks."""
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape((text or "").strip())))
    parts = "".join(f"<p>{part}</p>" for part in re.split(r"\n\s*\n", escaped) if part)
    return Markup(parts)  # the text is escaped above  # nosec B704


def limits(schema: dict[str, Any]) -> Markup:
    """Return the default and the limits of a value as sentences."""
    named = [schema, *[one for one in schema.get("anyOf", []) if one.get("type") != "null"]]
    found = {key: one[key] for one in named for key in LIMITS if one.get(key) is not None}
    return prose(" ".join(LIMITS[key].format(f"`{json.dumps(found[key])}`") for key in LIMITS if key in found))


def _operation(path: str, method: str, found: dict[str, Any], schemas: dict[str, Any]) -> Operation:
    needs_token = found.get("security") != []
    bodies = found.get("requestBody", {}).get("content", {})
    answers = sorted(found["responses"].items())
    call = _call(path, method, found.get("parameters", []), needs_token)
    return Operation(
        anchor=found["operationId"],
        title=f"{method.upper()} {path}",
        summary=found["summary"],
        description=found["description"],
        needs_token=needs_token,
        parameters=found.get("parameters", []),
        bodies=bodies,
        answers={status: answer for status, answer in answers if int(status) < FIRST_ERROR},
        problems={status: answer for status, answer in answers if int(status) >= FIRST_ERROR},
        examples=[" \\\n  ".join([*call, *_body(media, body, schemas)]) for media, body in bodies.items()]
        or [" \\\n  ".join(call)],
    )


def _call(path: str, method: str, parameters: list[dict[str, Any]], needs_token: bool) -> list[str]:
    """Return the lines of a call of curl without a body. The shell variable $JOB_ID stands for {job_id}."""
    address = re.sub(r"\{(\w+)\}", lambda name: f"${name[1].upper()}", path)
    needed = [one["name"] for one in parameters if one.get("required") and one["in"] == "query"]
    query = "&".join(f"{name}=${name.upper()}" for name in needed)
    headers = ["Authorization: Bearer $VITFIT_TOKEN"] if needs_token else []
    headers += [f"{one['name']}: ..." for one in parameters if one.get("required") and one["in"] == "header"]
    start = "curl" if method == "get" else f"curl -X {method.upper()}"
    return [f'{start} "$S{address}{"?" + query if query else ""}"', *[f'-H "{header}"' for header in headers]]


def _body(media: str, body: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """Return the lines that send the example of a body."""
    schema = body.get("schema", {})
    if media == "multipart/form-data":
        return [f"-F {_part(name, part)}" for name, part in schema.get("properties", {}).items()]
    example = body.get("example")
    if example is None and "examples" in body:
        example = next(iter(body["examples"].values()))["value"]
    if example is None:
        example = schemas.get(schema.get("$ref", "").rpartition("/")[2], {}).get("example", {})
    return [f"-H 'Content-Type: {media}'", f"-d {shlex.quote(json.dumps(example))}"]


def _part(name: str, part: dict[str, Any]) -> str:
    example = str(part.get("example", "..."))
    if part.get("contentMediaType") == "application/octet-stream" or part.get("format") == "binary":
        return shlex.quote(f"{name}=@{example}")
    return shlex.quote(f"{name}={example}")
