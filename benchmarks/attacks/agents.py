"""Attacks on the server by measuring agents."""

from typing import Any

from benchmarks.attacks.target import Open, Target, expect

AGENT: dict[str, Any] = {
    **{"protocol": 1, "version": "0.1.0", "machine": "Cortex-A76", "threads": 4, "runtime": "onnxruntime 1.22.0"},
    "providers": ["CPUExecutionProvider"],
}


def takeover(target: Target) -> str:
    """Eve registers the device of another token, with the machine that the server shows to everybody."""
    body = {**AGENT, "name": "pi"}
    with target.client("pi") as rightful, target.client("eve") as eve:
        expect(rightful.post("/v1/agents", json=body), (201,), "the rightful agent")
        answer = eve.post("/v1/agents", json=body)
        expect(answer, (403, 404, 409), "eve takes the device")
        again = rightful.post("/v1/agents", json=body)
        expect(again, (201,), "the rightful agent comes back")
    return f"{answer.status_code} for eve; the rightful agent goes on"


def many_devices(target: Target) -> str:
    """Sixty devices of 900 kB, which everybody would get in a list."""
    taken = 0
    with target.client("eve") as eve, target.client("ann") as ann:
        for number in range(60):
            answer = eve.post("/v1/agents", json={**AGENT, "name": f"many-{number}", "machine": "x" * 900_000})
            expect(answer, (201, 400, 413, 422, 429), "a device of 900 kB")
            answer = eve.post("/v1/agents", json={**AGENT, "name": f"many-{number}"})
            expect(answer, (201, 409, 422, 429), "one device more")
            taken += answer.status_code == 201
        size = len(ann.get("/v1/devices").content)
    if size > 2_000_000:
        raise Open(f"GET /v1/devices has {size:,} bytes")
    return f"{taken} of 60 are taken; GET /v1/devices has {size:,} bytes"


def odd_session(target: Target) -> str:
    with target.client("pi") as web:
        expect(web.post("/v1/agents", json={**AGENT, "name": "odd"}), (201,), "an agent")
        headers = [(b"Vitfit-Session", "\u00e9".encode("latin-1"))]
        answer = web.get("/v1/agents/agent-odd/task", headers=headers, params={"wait_s": 0})
    expect(answer, (400, 404, 409, 422), "a session that is not ASCII")
    return str(answer.status_code)
