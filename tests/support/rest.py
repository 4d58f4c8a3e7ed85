"""Helpers for tests that talk to the application in this process."""

import io
import zipfile
from typing import Any

from fastapi.testclient import TestClient

PROBLEM = "application/problem+json"


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", b"0" * 1000)
    return buffer.getvalue()


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """Check the shape of an error, and return its body."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["type"], body["status"]) == (status, f"/problems/{code}", status), body
    assert answer.headers["content-type"] == PROBLEM
    assert body["title"] and body["detail"]
    return body


def create_model(web: TestClient, name: str = "fake_tiny_patch4_32") -> str:
    answer = web.post("/v1/models", json={"name": name, "options": {"num_classes": 10}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])
