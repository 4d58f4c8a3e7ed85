"""A server on loopback that answers an agent with whatever a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HTML = b"<!doctype html><title>Sign in</title>"


@dataclass
class Answer:
    """One answer. chunks: how often the body is sent; more than one sends it without a Content-Length."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: int = 1

    @classmethod
    def json(cls, value: Any, status: int = 200) -> "Answer":
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


PAGE = Answer(200, HTML, {"Content-Type": "text/html"})
REGISTERED = Answer.json({"device": "agent-a", "session": "s"}, 201)
NOTHING = Answer(204)


@dataclass
class Rogue:
    """The answers of a rogue server, and what it heard.

    answers: taken from the left, one for each request for a task. When none is left, there is no task. file: the
    answer to a request for a file.
    """

    answers: list[Answer]
    file: Answer
    url: str = ""
    replies: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """The paths of all requests."""
    registered: list[Answer] = field(default_factory=lambda: [REGISTERED])
    """Answers to a registration. The last one stays."""

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        self.asked.append(path)
        if method == "POST" and path == "/v1/agents":
            return self.registered.pop(0) if len(self.registered) > 1 else self.registered[0]
        if method == "POST":
            self.replies.append(json.loads(body))
            return NOTHING
        if "/files/" in path:
            return self.file
        return self.answers.pop(0) if self.answers else NOTHING


@contextmanager
def rogue_server(*answers: Answer, file: Answer = NOTHING) -> Iterator[Rogue]:
    """Start a rogue server that gives these answers to requests for a task."""
    rogue = Rogue(list(answers), file)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(rogue.answer))
    server.daemon_threads = True
    rogue.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield rogue
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(answer_of: Callable[[str, str, bytes], Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send("GET")

        def do_POST(self) -> None:
            self._send("POST")

        def _send(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = answer_of(method, self.path, body)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.chunks == 1:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            try:
                for _ in range(answer.chunks):
                    self.wfile.write(answer.body)
            except OSError:  # the agent has read enough
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
