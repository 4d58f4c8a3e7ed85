"""Bodies that come as JSON or as multipart at the same address, and how OpenAPI shows them."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.core.errors import WrongMediaType
from service.middleware.problems import invalid_fields

JSON_TYPE = "application/json"
MULTIPART_TYPE = "multipart/form-data"
B = TypeVar("B", bound=BaseModel)


def media_type(request: Request) -> str:
    """JSON_TYPE or MULTIPART_TYPE. Raises: WrongMediaType."""
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found not in (JSON_TYPE, MULTIPART_TYPE):
        raise WrongMediaType(
            f"Content-Type {found!r} is not taken here: send {JSON_TYPE} or {MULTIPART_TYPE}.",
            allowed=[JSON_TYPE, MULTIPART_TYPE],
        )
    return found


def content_length(request: Request) -> int:
    """What the client says that it will send; 0 when it does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isdigit() else 0


def parse(kind: type[B], text: str | bytes) -> B:
    """A JSON text as `kind`. Raises: InvalidRequest that names the field."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise invalid_fields(error.errors(include_url=False)) from error


def body_of(kind: type[BaseModel], parts: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """`openapi_extra` for an address that takes `kind` as JSON, or multipart `parts`."""
    example = kind.model_config["json_schema_extra"]["example"]  # type: ignore[index]
    json_body = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}, "example": example}
    form = {"schema": {"type": "object", "properties": parts, "required": required, "additionalProperties": False}}
    example_form = {name: part["example"] for name, part in parts.items() if "example" in part}
    content = {JSON_TYPE: json_body, MULTIPART_TYPE: {**form, "example": example_form}}
    return {"requestBody": {"required": True, "content": content}}
