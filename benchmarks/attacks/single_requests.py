"""Attacks by single requests: page tokens, headers, methods, origins, made-up access tokens."""

import base64
import json
import socket
import time

from benchmarks.attacks.target import Open, Target, expect


def page_tokens(target: Target) -> str:
    log, began = target.folder / "server.log", time.monotonic()
    size = log.stat().st_size
    odd = [["jobs ", "0001-01-01T00:00:00+14:00", "x"], ["jobs ", "9999-12-31T23:59:59-14:00", "x"], ["jobs ", "a", 5]]
    with target.client("ann") as web:
        for value in odd:
            token = base64.urlsafe_b64encode(json.dumps(value).encode()).decode()
            expect(web.get("/v1/jobs", params={"page_token": token}), (400,), "odd page token")
    grown = log.stat().st_size - size
    if grown > 100_000:
        raise Open(f"{grown:,} bytes of log")
    return f"400 for {len(odd)} of {len(odd)} in {time.monotonic() - began:.1f} s"


def connections(target: Target) -> str:
    idle = []
    try:
        for _ in range(260):
            one = socket.create_connection(("127.0.0.1", target.port), timeout=10)
            idle.append(one)
        with target.client() as web:
            expect(web.get("/livez"), (200, 204), "with 260 idle connections")
        deadline = time.monotonic() + 60
        still = idle
        while still and time.monotonic() < deadline:
            time.sleep(1)
            still = [one for one in still if not _is_closed(one)]
        if still:
            raise Open(f"{len(still)} connections without a byte are open after 60 s")
    finally:
        for one in idle:
            one.close()
    return "people are served, and idle connections are closed within 60 s"


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def two_content_types(target: Target) -> str:
    before = target.watch.memory_most
    head = (
        f"POST /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {target.tokens['eve']}\r\n"
        "Content-Type: application/json\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", target.port), timeout=30) as one:
        one.sendall(head.encode())
        sent = 0
        try:
            for _ in range(200):
                one.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
                sent += 1
        except OSError:
            pass
    grown = target.watch.memory_most - before
    if grown > 150 * 2**20:
        raise Open(f"the server took {grown / 2**20:.0f} MiB more")
    return f"refused after {sent} MiB"


def methods(target: Target) -> str:
    with target.client() as web:
        for number in range(300):
            web.request(f"M{number}" + "X" * 4000, "/livez")
        size = len(target.client("ann").get("/metrics").content)
    if size > 500_000:
        raise Open(f"/metrics has {size:,} bytes")
    return f"/metrics has {size:,} bytes"


def forged_tokens(target: Target) -> str:
    limit = 0
    with target.client() as web:
        for number in range(400):
            answer = web.get("/v1/jobs", headers={"Authorization": f"Bearer forged{number}"})
            expect(answer, (401, 429), "forged token")
            limit += answer.status_code == 429
    if not limit:
        raise Open("400 made-up tokens, and no limit")
    return f"401, then 429 ({limit} of 400)"


def idempotency(target: Target) -> str:
    """Two people use the same key at the same time: each gets an answer of his own."""
    key = {"Idempotency-Key": "same"}
    body = {"model": "mdl_none", "budgets": [{"metric": "macs_keep", "limit": 0.5}]}
    answers = []
    for person in ("ann", "bob"):
        with target.client(person) as web:
            answers.append(web.post("/v1/jobs", json=body, headers=key))
    for answer in answers:
        expect(answer, (404, 422), "equal key of two people")
    return "each person has keys of his own"


def open_pages(target: Target) -> str:
    with target.client() as web:
        page = web.get("/docs").text
    if "https://" in page and "cdn" in page:
        raise Open("/docs loads scripts of third parties")
    return "/docs loads nothing from elsewhere; it is open on purpose (docs/threats.md)"
