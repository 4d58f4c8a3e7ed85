"""Hooks for stateful Schemathesis (SCHEMATHESIS_HOOKS).

They change generated bodies to things that the fake engine knows. Otherwise no call could follow a creation.
"""

import json
import os
import zlib
from typing import Any

import schemathesis
from vitfit.agent import PROTOCOL

from latency.devices.devices import PROFILES

EMPTY_ZIP = b"PK\x05\x06" + bytes(18)
PHONE: dict[str, Any] = json.loads((PROFILES / "generic-mobile.json").read_text())


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Replace the parts that the fake engine must know. Leave the rest of the body as it was generated."""
    if not isinstance(body, dict) or context.operation.method.upper() != "POST":
        return body
    path = context.operation.path
    if path == "/v1/models" and "checkpoint" not in body:
        return {**body, "name": "fake_tiny_patch4_32"}
    if path == "/v1/datasets":
        return {**body, "file": EMPTY_ZIP} if "file" in body else {"path": os.environ["FOLDER"]}
    if path == "/v1/agents":
        return {**body, "protocol": PROTOCOL, "name": f"agent-{zlib.crc32(repr(body).encode())}"}
    if path == "/v1/devices":
        return {**PHONE, "name": f"user-{zlib.crc32(repr(body).encode())}"}
    return body


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    """Make long polls short."""
    return {**query, "wait_s": 0} if isinstance(query, dict) and "wait_s" in query else query
