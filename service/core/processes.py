"""Processes: identify this one, check whether another one has ended, start a child, and end a process group."""

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
"""Exit statuses of a worker: its job belongs to another worker now (3), or the disk is full (4)."""


@functools.cache
def _machine() -> str:
    return socket.gethostname().replace("/", "-").replace("_", "-")


def _started(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot, or None if it does not exist or is a zombie.

    On a system without /proc the result is "0" for every process that exists.
    """
    if not PROC.exists():
        return "0" if _answers(pid) else None
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # split after the command name, which may contain spaces
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
    """Return the identity of this process, `machine/boot/pid/start`. Unlike a bare pid, it is never reused."""
    return f"{_machine()}/{_boot()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Whether a process has ended.

    Args:
        owner: the process, as its `whoami()` returned it. For a process on another machine the result is always False,
            because this machine cannot know.
    """
    parts = owner.split("/")
    if len(parts) != 4 or parts[0] != _machine() or not parts[2].isdigit():
        return False
    return parts[1] != _boot() or _started(int(parts[2])) != parts[3]


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child: that of this process, plus `extra`.

    PYTHONPATH is set so that `python -m service...` finds the packages of the project from any working directory.
    """
    inherited = os.environ.get("PYTHONPATH")
    path = f"{ROOT}{os.pathsep}{inherited}" if inherited else str(ROOT)
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


def start_child(
    arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None
) -> tuple["subprocess.Popen[bytes]", int]:
    """Start `python -m ARGUMENTS --parent-pipe N` as the leader of a new process group.

    Args:
        arguments: the module and its arguments.
        environment: the whole environment of the child.
        output: file for the child's stdout and stderr; None: the child shares those of this process.

    Returns: the child, and this process's end of the pipe. The child ends when this end closes, so it also ends if this
    process is killed.

    Raises: OSError.
    """
    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments, "--parent-pipe", str(theirs)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(theirs,),
            env=environment,
        )
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, ours


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group: the child that leads it, and the processes that the child has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def end_group(process: "subprocess.Popen[bytes]", grace_s: float = 0.5) -> None:
    """End a child and its process group, and reap the child.

    The group gets SIGTERM, and then SIGKILL once the child has ended or `grace_s` seconds have passed.
    """
    signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    signal_group(process.pid, signal.SIGKILL)
    process.wait()
