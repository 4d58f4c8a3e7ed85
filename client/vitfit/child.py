"""Run a child process that reads one JSON object from stdin and writes one JSON object to stdout."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

STARTS: Final = 3
"""Maximum number of starts.

A child that a signal kills is started again. A person may have killed it, or the system because memory ran out.
"""
ASKED_BY: Final = "VITFIT_ASKED_BY"
LONGEST_S: Final = 1800.0
"""Time limit of one start in seconds, many times longer than a measurement.

Without the limit, a child that hangs would hold the machine's measuring lease for ever.
"""
PR_SET_PDEATHSIG: Final = 1
NETWORK: Final = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
"""The audit events of Python that lead to the network."""


class ChildFailed(Exception):
    """The child process failed or took too long. The message is the last line that it wrote, or the reason."""


def ask(command: Sequence[str], request: Mapping[str, Any], timeout_s: float = LONGEST_S) -> dict[str, Any]:
    """Start `command`, send it `request`, and return its answer.

    timeout_s: time limit of one start in seconds; a child that a signal kills is started up to `STARTS` times.

    Raises: ChildFailed.
    """
    environment = {**os.environ, ASKED_BY: str(os.getpid())}
    for _ in range(STARTS):
        try:
            done = subprocess.run(
                list(command),
                input=json.dumps(request),
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"it took longer than {timeout_s:g} s") from None
        if done.returncode >= 0:
            return _answer(done)
    raise ChildFailed(
        f"it was killed by {signal.Signals(-done.returncode).name}, {STARTS} times in a row. A common reason is that "
        "the machine has too little memory. Try a smaller model or batch, or stop other programs on this machine"
    )


def stay_offline() -> None:
    """Make this child process unable to use the network: it opens files that other people have made."""
    sys.addaudithook(_refuse_network)


def _refuse_network(event: str, values: tuple[Any, ...]) -> None:
    if event in NETWORK and not (event == "socket.connect" and values[0].family == socket.AF_UNIX):
        raise ConnectionError("a measuring process does not use the network")


def _answer(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    if done.returncode != 0:
        raise ChildFailed((done.stderr.strip().splitlines() or ["it wrote no message"])[-1])
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise ChildFailed(f"its answer is not JSON: {done.stdout[-200:]!r}") from None
    return answer


def die_with_parent() -> None:
    """Make this child process end as soon as its parent is killed. The child must call this first.

    Works on Linux only. On other systems, the child continues until its work is done.
    """
    if sys.platform != "linux" or ASKED_BY not in os.environ:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[ASKED_BY]):  # the parent was killed before the call above
        os._exit(1)
