"""Attacks on an agent by its server."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from benchmarks.attacks.target import Open, Target

SECONDS = 8.0
REGISTERED = json.dumps({"device": "agent-x", "session": "s"}).encode()
TASK = {"id": "t", "threads": 1, "batch": 1, "provider": "CPUExecutionProvider", "seconds": 0.1, "rounds": 1, "seed": 0}
ODD: dict[str, tuple[int, bytes]] = {
    "a page": (200, b"<html>sign in</html>"),
    "a redirect": (302, b""),
    "a task without keys": (200, b"{}"),
    "a list": (200, b"[1]"),
    "a path as digest": (200, json.dumps({**TASK, "files": [{"sha256": "../../../../../../etc/hostname"}]}).encode()),
}


class _Rogue(BaseHTTPRequestHandler):
    answer: ClassVar[tuple[int, bytes]] = (200, b"")
    told: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        _Rogue.told.append(body)
        self._send(201, REGISTERED)

    def do_GET(self) -> None:
        time.sleep(0.2)
        self._send(*_Rogue.answer)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


def rogue_server(target: Target) -> str:
    """The agent must survive every odd answer, open no path that it is told, and tell none of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Rogue)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        for what, answer in ODD.items():
            _Rogue.answer, _Rogue.told = answer, []
            command = [sys.executable, "-m", "vitfit.cli", "agent", "--server", address, "--name", "x", "--token", "t"]
            agent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                agent.wait(SECONDS)
                raise Open(f"{what}: the agent ended with {agent.returncode}")
            except subprocess.TimeoutExpired:
                pass
            finally:
                agent.kill()
                agent.wait()
            if any(b"/etc/hostname" in body or b"/tmp/" in body for body in _Rogue.told[1:]):
                raise Open(f"{what}: the agent told a path")
    finally:
        server.shutdown()
    return f"the agent survives {len(ODD)} of {len(ODD)} odd answers"
