"""A process that reads one JSON object and answers with one."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

STARTS: Final = 3
"""A child that something kills (a person, or the system for want of memory) is started so often in all."""
ASKED_BY: Final = "VITFIT_ASKED_BY"
LONGEST_S: Final = 1800.0
"""Of one start: many times what a measurement takes. A child that hangs must not hold the machine's measuring lease for ever."""
PR_SET_PDEATHSIG: Final = 1


class ChildFailed(Exception):
    """It died, or took too long; the last thing that it said."""


def ask(command: Sequence[str], request: Mapping[str, Any], timeout_s: float = LONGEST_S) -> dict[str, Any]:
    """timeout_s: of one start. Raises: ChildFailed."""
    environment = {**os.environ, ASKED_BY: str(os.getpid())}
    for _ in range(STARTS):
        try:
            done = subprocess.run(
                list(command), input=json.dumps(request), capture_output=True, text=True, check=False,
                timeout=timeout_s, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"it took longer than {timeout_s:g} s") from None
        if done.returncode >= 0:
            return _answer(done)
    raise ChildFailed(
        f"it was killed by {signal.Signals(-done.returncode).name}, {STARTS} times in a row. Often the machine's memory is too "
        "small: try a smaller model or batch, or stop what else runs there"
    )  # fmt: skip


def _answer(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    if done.returncode != 0:
        raise ChildFailed((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise ChildFailed(f"its answer is no JSON: {done.stdout[-200:]!r}") from None
    return answer


def die_with_parent() -> None:
    """For the child, first thing: it ends at once when whoever asked it is killed. Linux only; elsewhere it ends by itself."""
    if sys.platform != "linux" or ASKED_BY not in os.environ:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[ASKED_BY]):  # it was killed before the line above
        os._exit(1)
