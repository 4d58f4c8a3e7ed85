"""For stateful Schemathesis (SCHEMATHESIS_HOOKS): what is made must be something that the fake engine knows, or nothing follows it."""

import os
from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Otherwise as it was generated."""
    if not isinstance(body, dict) or context.operation.method.upper() != "POST":
        return body
    path = context.operation.path
    if path == "/v1/models" and "checkpoint" not in body:
        return {**body, "name": "fake_tiny_patch4_32"}
    if path == "/v1/datasets" and "file" not in body:
        return {"path": os.environ["FOLDER"]}
    return body
