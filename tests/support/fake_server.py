"""A fake vitfit server in one file.

It speaks the REST interface over a real socket. It computes nothing, and it fails when a test asks for it.
"""

import base64
import email.parser
import email.policy
import hashlib
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

DEVICES: list[dict[str, Any]] = [
    {"name": "cpu", "kind": "measured", "reachable": True, "threads": 2, "precision": "fp32", "description": "here"},
    {"name": "generic-mobile", "kind": "profile", "reachable": False, "threads": None, "description": "a phone"},
]
MODEL = {
    **{"name": "small", "params": 5, "macs": 10, "image": [3, 32, 32], "classes": 5, "blocks": 1, "heads": 1},
    **{"width": 8, "tokens": 17, "key": "0123456789abcdef"},
}
DATA: dict[str, Any] = {"images": 64, "labelled": False, "classes": None, "splits": {}, "warnings": []}
VALIDATED: dict[str, Any] = {
    "valid": True,
    "reason": None,
    "description": {"model": MODEL, "dataset": DATA, "criterion": "hsic", "space": "compact", "warnings": []},
}
METHODS = [{"name": "joint", "title": "Heads, neurons, tokens", "axes": ["heads"], "criteria": ["hsic"]}]


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def parts(self) -> dict[str, bytes]:
        """The parts of a multipart body by their field names."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self.body)
        parts: dict[str, bytes] = {}
        for part in message.iter_parts():
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            parts[str(part.get_param("name", header="content-disposition"))] = content
        return parts


@dataclass
class FakeServer:
    """A fake server. Start it with `with FakeServer() as server:`. A test may change its fields while it runs."""

    states: list[dict[str, Any]] = field(default_factory=lambda: [{"status": "succeeded"}])
    files: dict[str, bytes] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    page_size: int = 2
    retry_after: str = "0"
    # Faults, taken from the left, one per request: a status to answer with, or "drop" (do the work, then send no
    # answer).
    faults: list[int | str] = field(default_factory=list)
    # Faults of artifact downloads: the numbers of bytes after which the server breaks off the body.
    cuts: list[int] = field(default_factory=list)
    wrong_listing: bool = False
    wrong_header: bool = False
    ignore_range: bool = False
    seen: list[Seen] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusal: dict[str, Any] | None = None
    devices: list[dict[str, Any]] = field(default_factory=lambda: DEVICES)
    validated: dict[str, Any] = field(default_factory=lambda: VALIDATED)

    def __enter__(self) -> Self:
        self._http = _Quiet(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": self}))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def requests(self, method: str, path: str) -> list[Seen]:
        """Return the requests that arrived with this method at this path."""
        return [request for request in self.seen if (request.method, request.path) == (method, path)]

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job in its present state. Each call moves the job to its next state."""
        job = self.jobs[job_id]
        state = self.states[min(job["polls"], len(self.states) - 1)]
        job["polls"] += 1
        return {**job, **state}

    def new_job(self, request: Any, **more: Any) -> dict[str, Any]:
        """Create a queued job."""
        job_id = f"job_{len(self.jobs) + 1:06d}"
        self.jobs[job_id] = {"id": job_id, "status": "queued", "request": request, "polls": 0, "error": None, **more}
        return self.jobs[job_id]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error, because some tests use a client that hangs up early."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FakeServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, url.path, dict(urllib.parse.parse_qsl(url.query)), headers, body)
        fake = self.server_state
        fake.seen.append(seen)
        fault = fake.faults.pop(0) if fake.faults else None
        if isinstance(fault, int):
            return self._answer(fault, {"type": "/problems/broken", "title": "Broken", "detail": "out of order"})
        if self.command == "POST" and fake.refusal is not None:
            return self._answer(fake.refusal["status"], fake.refusal)
        self._drop = fault == "drop"
        self._route(fake, seen, url.path.strip("/").split("/"))

    def _route(self, fake: FakeServer, seen: Seen, path: list[str]) -> None:
        match self.command, path:
            case "GET", ["healthz"]:
                self._answer(200, {"status": "ok"})
            case "GET", ["v1", "devices"]:
                self._answer(200, {"devices": fake.devices})
            case "GET", ["v1", "methods"]:
                self._answer(200, {"methods": METHODS})
            case "POST", ["v1", ("models" | "datasets") as noun]:
                self._create(fake, seen, lambda: {"id": f"{noun[:3]}_000001", "name": "uploaded", "description": None})
            case "POST", ["v1", "jobs"]:
                if seen.query.get("validate_only") == "true":
                    return self._answer(200, fake.validated)
                self._create(fake, seen, lambda: fake.new_job(seen.json), status=202)
            case "GET", ["v1", "jobs"]:
                self._page("jobs", list(fake.jobs.values()), seen)
            case _, ["v1", "jobs", job_id, *_] if job_id not in fake.jobs:
                detail = f"There is no job {job_id}. GET /v1/jobs lists yours."
                self._answer(404, {"type": "/problems/not-found", "title": "Not found", "detail": detail})
            case "GET", ["v1", "jobs", job_id]:
                self._answer(200, fake.job(job_id), {"Retry-After": fake.retry_after})
            case "DELETE", ["v1", "jobs", job_id]:
                del fake.jobs[job_id]
                self._answer(204, None)
            case "POST", ["v1", "jobs", job_id, "cancel"]:
                self._answer(200, {**fake.jobs[job_id], "status": "canceling"})
            case "POST", ["v1", "jobs", job_id, "deliver"]:
                self._answer(202, fake.new_job(fake.jobs[job_id]["request"], parent=job_id))
            case "GET", ["v1", "jobs", job_id, "trials"]:
                self._page("trials", fake.trials, seen)
            case "GET", ["v1", "jobs", job_id, "artifacts"]:
                self._answer(200, {"artifacts": [_listed(fake, job_id, name) for name in fake.files]})
            case "GET", ["v1", "jobs", _, "artifacts", name]:
                self._file(fake, seen, fake.files[name])
            case _:
                self._answer(404, {"type": "/problems/not-found", "title": "Not found", "detail": "nothing here"})

    def _create(self, fake: FakeServer, seen: Seen, make: Any, status: int = 201) -> None:
        """Create one thing per idempotency key, also when a client asks for it several times."""
        key = seen.headers.get("idempotency-key")
        if key is None:
            return self._answer(201, make())
        if key not in fake.answers:
            fake.answers[key] = make()
        self._answer(status, fake.answers[key])

    def _page(self, noun: str, rows: list[Any], seen: Seen) -> None:
        start = int(seen.query.get("page_token", 0))
        size = self.server_state.page_size
        following = str(start + size) if start + size < len(rows) else None
        self._answer(200, {noun: rows[start : start + size], "next_page_token": following})

    def _file(self, fake: FakeServer, seen: Seen, content: bytes) -> None:
        digest = hashlib.sha256(content).digest()
        etag = f'"{digest.hex()}"'
        start = 0
        asked = seen.headers.get("range", "")
        if asked and seen.headers.get("if-range") == etag and not fake.ignore_range:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        named = base64.b64encode(b"\0" * 32 if fake.wrong_header else digest).decode()
        self.send_response(206 if start else 200)
        self.send_header("ETag", etag)
        self.send_header("Repr-Digest", f"sha-256=:{named}:")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = fake.cuts.pop(0) if fake.cuts else len(body)
        self.wfile.write(body[:cut])
        self.close_connection = cut < len(body)

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        if getattr(self, "_drop", False):
            self.close_connection = True
            return
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/problem+json" if status >= 400 else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _listed(fake: FakeServer, job_id: str, name: str) -> dict[str, Any]:
    content = fake.files[name]
    digest = hashlib.sha256(b"another" if fake.wrong_listing else content).hexdigest()
    href = f"/v1/jobs/{job_id}/artifacts/{name}"
    return {"name": name, "bytes": len(content), "sha256": digest, "media_type": "application/onnx", "href": href}
