"""Tests of requests to a child process.

A killed child is started again, a limited number of times. A child dies with the process that asked it.
"""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from vitfit.child import STARTS, ChildFailed, ask

from tests.support.running import is_alive, wait_until

DIES = "import os, pathlib, sys; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x')\n"
DIES += "if len(p.read_text()) <= int(sys.argv[2]): os.kill(os.getpid(), 9)\n"
DIES += "print('{\"starts\": %d}' % len(p.read_text()))"
WAITS = "from vitfit.child import die_with_parent; die_with_parent(); import sys, time, pathlib, os; "
WAITS += "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"


def asked(folder: Path, deaths: int) -> dict[str, int]:
    """Ask a child whose first `deaths` processes kill themselves, and return its answer."""
    (folder / "starts").write_text("")
    return ask([sys.executable, "-c", DIES, str(folder / "starts"), str(deaths)], {})


def test_a_killed_child_is_asked_again(tmp_path: Path) -> None:
    assert asked(tmp_path, STARTS - 1) == {"starts": STARTS}


def test_a_child_that_is_killed_again_and_again_is_given_up_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=rf"killed by SIGKILL, {STARTS} times in a row.*memory"):
        asked(tmp_path, 99)
    assert len((tmp_path / "starts").read_text()) == STARTS


def test_a_child_that_fails_by_itself_is_not_asked_again_and_half_an_answer_is_none(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="no such thing"):
        ask([sys.executable, "-c", "raise ValueError('no such thing')"], {})
    with pytest.raises(ChildFailed, match=r"""not JSON: '{"half'"""):
        ask([sys.executable, "-c", "print('{\"half', end='')"], {})


def test_a_child_that_hangs_is_given_up() -> None:
    with pytest.raises(ChildFailed, match=r"longer than 0\.5 s"):
        ask([sys.executable, "-c", "import time; time.sleep(600)"], {}, 0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_child_dies_with_whoever_asked(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    code = f"import sys; from vitfit.child import ask; ask([sys.executable, '-c', {WAITS!r}, {str(told)!r}], {{}})"
    asker = subprocess.Popen([sys.executable, "-c", code])
    child = int(wait_until(lambda: told.exists() and told.read_text(), "the child"))
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    wait_until(lambda: not is_alive(child), "the end of the child")


def test_a_measuring_child_has_no_network() -> None:
    """The child connects to a server that exists; it may talk to its own machine by Unix sockets only."""
    code = """
import json, socket, sys
from vitfit.child import stay_offline
stay_offline()
found = []
for call in (
    lambda: socket.create_connection(("127.0.0.1", json.load(sys.stdin)["port"])),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: socket.socket(socket.AF_UNIX).connect("/no/such/socket"),
):
    try:
        call()
    except OSError as error:
        found.append(type(error).__name__)
print(json.dumps({"found": found}))
"""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = ask([sys.executable, "-c", code], {"port": listener.getsockname()[1]})
    assert answer["found"] == ["ConnectionError", "ConnectionError", "FileNotFoundError"]


@pytest.mark.parametrize("module", ["vitfit.measuring", "latency.measuring.footprint"])
def test_the_children_that_open_models_stay_offline(module: str) -> None:
    code = f"""
import socket, sys, vitfit.child
vitfit.child.die_with_parent = lambda: None
import {module} as child
sys.stdin.close()
try:
    child.main()
except ValueError:
    pass
try:
    socket.getaddrinfo("localhost", 80)
except ConnectionError:
    print('{{"offline": true}}')
"""
    assert ask([sys.executable, "-c", code], {}) == {"offline": True}
