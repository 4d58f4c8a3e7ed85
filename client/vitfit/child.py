"""A process that reads one JSON object and answers with one."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


class ChildFailed(Exception):
    """It died, or took too long; the last thing that it said."""


def ask(command: Sequence[str], request: Mapping[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
    """Raises: ChildFailed."""
    try:
        done = subprocess.run(
            list(command), input=json.dumps(request), capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"it took longer than {timeout_s:g} s") from None
    if done.returncode != 0:
        raise ChildFailed((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
