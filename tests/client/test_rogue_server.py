"""Tests of an agent whose server is a rogue, or a proxy that answers with pages of its own."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from vitfit.agent import Agent
from vitfit.agent.exchange import MOST_JSON_BYTES
from vitfit.agent.task import OddTask, read_task
from vitfit.agent.without_paths import without_paths
from vitfit.connection import Connection
from vitfit.errors import VitfitError

from tests.support.rogue_server import NOTHING, PAGE, REGISTERED, Answer, Rogue, rogue_server

CONTENT = b"the bytes of a network"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
TASK: dict[str, Any] = {
    **{"id": "1", "threads": 1, "batch": 1, "provider": "CPUExecutionProvider"},
    **{"seconds": 0.1, "rounds": 3, "seed": 0},
    **{"files": [{"sha256": DIGEST, "bytes": len(CONTENT)}], "images": None},
}
FILE = Answer(200, CONTENT)
SAMPLES = {"samples_ms": [[[1.0]] * 3]}
MEASURES = (sys.executable, "-c", f"print({json.dumps(json.dumps(SAMPLES))})")
GOOD = Answer.json(TASK)
TAKEN = SAMPLES


def run_agent(rogue: Rogue, cache: Path, tasks: int, **more: Any) -> list[str]:
    """Let an agent answer some tasks of a rogue server, and return what it told its user."""
    said: list[str] = []
    connection = Connection(rogue.url, 0, 5.0)
    try:
        Agent(connection, "a", cache, MEASURES, say=said.append, **more).run(tasks)
    finally:
        connection.close()
    return said


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (PAGE, "is not JSON"),
        (Answer(302, b"", {"Location": "http://127.0.0.1:1/v1/agents/agent-a/task"}), "was 302"),
        (Answer.json([TASK]), "is not a JSON object"),
        (Answer.json({}), "without a usable id"),
        (Answer.json({**TASK, "id": "../../../evil"}), "without a usable id"),
        (Answer(200, b"[" * 100_000), "is not JSON"),
        (Answer(200, b"x" * 2**16, chunks=2 * MOST_JSON_BYTES // 2**16), "is longer than the 1,048,576 bytes"),
        (Answer(404, b"<title>404</title>"), "was 404, without an explanation"),
        (Answer(503, b"<title>busy</title>"), "was 503, without an explanation"),
        (Answer.json({"type": "/problems/too-many", "detail": "Too many requests."}, 429), "Too many requests."),
        (Answer.json({"type": "/problems/x", "detail": "y", "status": [], "facts": [1]}, 500), "y"),
    ],
)
def test_what_is_no_task_is_told_and_the_next_task_is_measured(tmp_path: Path, odd: Answer, words: str) -> None:
    with rogue_server(odd, odd, GOOD, file=FILE) as rogue:
        said = run_agent(rogue, tmp_path, tasks=1)
        assert rogue.replies == [TAKEN]
    assert sum(words in text for text in said) == 1, "told once, although it came twice"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": [{"sha256": "../../../../../../etc/hostname", "bytes": 1}]}, "64 hexadecimal digits"),
        ({"files": [{"sha256": "/etc/passwd", "bytes": 1}]}, "64 hexadecimal digits"),
        ({"files": [{"sha256": DIGEST + "\n", "bytes": 1}]}, "64 hexadecimal digits"),
        ({"images": {"sha256": DIGEST.upper(), "bytes": 1}}, "64 hexadecimal digits"),
        ({"images": "/etc/passwd"}, "must be an object"),
        ({"files": [{"sha256": DIGEST}]}, "bytes is None"),
        ({"files": []}, "1 to 256 files"),
        ({"files": None}, "1 to 256 files"),
        ({"threads": None}, "threads is None"),
        ({"batch": 10**5000}, "batch is a number of more than 64 bits"),
        ({"rounds": True}, "rounds is True"),
        ({"seed": -1}, "seed is -1"),
        ({"provider": "../x"}, "provider is '../x'"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"seconds": "1"}, "seconds is '1'"),
    ],
)
def test_an_odd_value_of_a_task_is_a_reason(change: dict[str, Any], words: str) -> None:
    with pytest.raises(OddTask) as odd:
        read_task({**TASK, **change})
    assert words in str(odd.value)


def test_a_path_in_the_place_of_a_digest_opens_nothing_and_the_server_gets_a_reason(tmp_path: Path) -> None:
    private = tmp_path / "private.onnx"
    private.write_bytes(CONTENT)
    before, cache = private.stat().st_mtime_ns, tmp_path / "cache"
    names = (str(private), "../private.onnx")
    odd = [Answer.json({**TASK, "files": [{"sha256": name, "bytes": len(CONTENT)}]}) for name in names]
    with rogue_server(*odd, Answer.json({"id": "1"}), GOOD, file=FILE) as rogue:
        run_agent(rogue, cache, tasks=4)
        reasons = [reply.get("refused", "") for reply in rogue.replies]
        assert not any("/files/" in path for path in rogue.asked[:-2]), "nothing is asked for under such a name"
    assert "64 hexadecimal digits" in reasons[0] and "64 hexadecimal digits" in reasons[1]
    assert "files must be a list" in reasons[2] and rogue.replies[3] == TAKEN
    assert private.stat().st_mtime_ns == before and [path.name for path in cache.iterdir()] == [DIGEST]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (PAGE, "is longer than"),
        (Answer(302, b"", {"Location": "http://127.0.0.1:1/"}), "was 302"),
        (Answer(200, CONTENT[:-1] + b"!"), "another SHA-256"),
        (Answer(200, b"x" * 2**16, chunks=64), "is longer than the 22 bytes"),
        (Answer.json({"type": "/problems/not-found", "detail": "There is no such file."}, 404), "no such file"),
    ],
)
def test_a_file_that_cannot_be_taken_is_a_reason_and_leaves_nothing(tmp_path: Path, file: Answer, words: str) -> None:
    with rogue_server(GOOD, file=file) as rogue:
        run_agent(rogue, tmp_path, tasks=1)
        assert words in rogue.replies[0]["refused"]
    assert not list(tmp_path.iterdir())


def test_a_file_above_the_limit_is_not_asked_for(tmp_path: Path) -> None:
    for size in (len(CONTENT), 10**15):
        task = Answer.json({**TASK, "files": [{"sha256": DIGEST, "bytes": size}]})
        with rogue_server(task, file=FILE) as rogue:
            run_agent(rogue, tmp_path, tasks=1, most_file_bytes=len(CONTENT) - 1)
            assert "--max-file-bytes" in rogue.replies[0]["refused"]
            assert not any("/files/" in path for path in rogue.asked)


def test_a_registration_that_is_none_is_repeated(tmp_path: Path) -> None:
    other = Answer.json({"device": "agent-b", "session": "s"}, 201)
    broken = Answer.json({"device": "agent-a", "session": "s\r\nX: y"}, 201)
    with rogue_server(GOOD, file=FILE) as rogue:
        rogue.registered = [PAGE, NOTHING, other, broken, REGISTERED]
        run_agent(rogue, tmp_path, tasks=1)
        assert rogue.replies == [TAKEN]


def test_a_refusal_by_a_vitfit_server_ends_the_agent(tmp_path: Path) -> None:
    refusal = Answer.json({"type": "/problems/forbidden", "detail": "This needs the scope agent."}, 403)
    with rogue_server() as rogue:
        rogue.registered = [refusal]
        with pytest.raises(VitfitError, match="needs the scope agent"):
            run_agent(rogue, tmp_path, tasks=1)


def test_reasons_name_no_path_of_the_agents_machine(tmp_path: Path) -> None:
    cache = tmp_path / "a folder"
    program = "import sys, json; sys.exit(f'Load model from {json.load(sys.stdin)[\"files\"][0]} failed')"
    with rogue_server(GOOD, file=FILE) as rogue:
        agent = Agent(Connection(rogue.url, 0, 5.0), "a", cache, (sys.executable, "-c", program))
        agent.run(tasks=1)
        reason = rogue.replies[0]["refused"]
    assert reason == f"the measuring process failed: Load model from the file {DIGEST[:12]} failed"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Load model from /tmp/x y/m.onnx failed", "Load model from [path] y/m.onnx failed"),
        ('File "/home/ann/m.onnx", line 3', 'File "[path]", line 3'),
        ("not found:/opt/lib.so", "not found:[path]"),
        ("C:\\Users\\ann\\m.onnx is damaged", "[path] is damaged"),
        ("12 ms/run, see http://127.0.0.1:8000/v1 and/or ask", "12 ms/run, see http://127.0.0.1:8000/v1 and/or ask"),
    ],
)
def test_paths_in_a_text(text: str, expected: str) -> None:
    assert without_paths(text) == expected
