"""Processes: who we are, whether another one is gone, how a child is started and its whole group ended."""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
PROC = Path("/proc")
LOST_JOB, DISK_FULL = 3, 4
"""Exit statuses of workers."""


@functools.cache
def _machine() -> str:
    return socket.gethostname().replace("/", "-").replace("_", "-")


def _started(pid: int) -> str | None:
    """When a process started, in ticks since this boot; None when there is none (or a zombie). Without /proc: "0"."""
    if not PROC.exists():
        return "0" if _answers(pid) else None
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's name before it may hold spaces
    state, ticks = fields[0], fields[19]
    return None if state in "ZX" else ticks


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _boot() -> str:
    file = PROC / "sys/kernel/random/boot_id"
    return file.read_text()[:8] if file.exists() else "0"


def whoami() -> str:
    """`machine/boot/pid/start`: unlike a bare pid it is never used again by another process."""
    return f"{_machine()}/{_boot()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Whether the process of `whoami()` was on this machine and has ended. Of other machines nothing is known: False."""
    parts = owner.split("/")
    if len(parts) != 4 or parts[0] != _machine() or not parts[2].isdigit():
        return False
    return parts[1] != _boot() or _started(int(parts[2])) != parts[3]


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment in which `python -m service...` finds our packages from any working directory."""
    inherited = os.environ.get("PYTHONPATH")
    path = f"{ROOT}{os.pathsep}{inherited}" if inherited else str(ROOT)
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


def start_child(
    arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None
) -> tuple["subprocess.Popen[bytes]", int]:
    """`python -m ARGUMENTS --parent-pipe N` as the leader of a process group, and our end of the pipe: the child ends when it
    closes, even if this process is killed. output: in the place of ours. Raises: OSError."""
    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments, "--parent-pipe", str(theirs)], stdin=subprocess.DEVNULL, stdout=output,
            stderr=None if output is None else subprocess.STDOUT, start_new_session=True, pass_fds=(theirs,), env=environment,
        )  # fmt: skip
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, ours


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a child that leads a process group, and everything that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def end_group(process: "subprocess.Popen[bytes]", grace_s: float = 0.5) -> None:
    """SIGTERM, then after `grace_s` SIGKILL, to a child's whole group; returns when the child is reaped."""
    signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    signal_group(process.pid, signal.SIGKILL)
    process.wait()
