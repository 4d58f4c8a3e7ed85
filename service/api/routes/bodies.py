"""Request bodies of addresses that accept both JSON and multipart, and their description in OpenAPI."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.core.errors import WrongMediaType
from service.middleware.problems import invalid_fields

JSON_TYPE = "application/json"
MULTIPART_TYPE = "multipart/form-data"
B = TypeVar("B", bound=BaseModel)


def media_type(request: Request) -> str:
    """Return the media type of the body: JSON_TYPE or MULTIPART_TYPE. Raises: WrongMediaType for any other."""
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found not in (JSON_TYPE, MULTIPART_TYPE):
        raise WrongMediaType(
            f"This address does not accept Content-Type {found!r}. Send {JSON_TYPE} or {MULTIPART_TYPE}.",
            allowed=[JSON_TYPE, MULTIPART_TYPE],
        )
    return found


def content_length(request: Request) -> int:
    """Return the Content-Length header in bytes, or 0 if the header is missing."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isdigit() else 0


def parse(kind: type[B], text: str | bytes) -> B:
    """Parse a JSON text as `kind`. Raises: InvalidRequest, which names the wrong field."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise invalid_fields(error.errors(include_url=False)) from error


def body_of(kind: type[BaseModel], parts: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return the `openapi_extra` of an address that accepts `kind` as JSON, or the multipart `parts`."""
    example = kind.model_config["json_schema_extra"]["example"]  # type: ignore[index]
    json_body = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}, "example": example}
    form = {"schema": {"type": "object", "properties": parts, "required": required, "additionalProperties": False}}
    example_form = {name: part["example"] for name, part in parts.items() if "example" in part}
    content = {JSON_TYPE: json_body, MULTIPART_TYPE: {**form, "example": example_form}}
    return {"requestBody": {"required": True, "content": content}}
