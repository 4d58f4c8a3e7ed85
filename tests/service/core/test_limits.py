"""Tests of the limits of processes: the kernel enforces them, and the message names the setting."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import DamagedFile, VitfitError
from service.core.errors import LimitReached, status_of
from service.core.limits import Limits, limit_in, machine_bytes
from service.core.processes import child_environment
from service.core.settings import Settings

GIB = 2**30


def run(limits: Limits, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process with these limits."""
    start = f"from service.core.limits import Limits\nLimits.from_json({limits.to_json()!r}).apply()\n"
    return subprocess.run(
        [sys.executable, "-c", start + code],
        cwd=folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_memory_files_and_children_are_limited(tmp_path: Path) -> None:
    code = """
import os, subprocess, sys
try:
    bytearray(2**31)
except MemoryError:
    print("memory")
try:
    with open("large", "wb") as file:
        file.write(bytes(2**21))
        file.flush()
except OSError as error:
    print(error.errno)
try:
    kept = [open(os.devnull) for _ in range(200)]
except OSError as error:
    print(error.errno)
kept = None
print(open("/proc/self/oom_score_adj").read().strip())
child = "import resource as r; print(*(r.getrlimit(kind)[0] for kind in (r.RLIMIT_DATA, r.RLIMIT_CORE)))"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip())
"""
    done = run(Limits(memory_bytes=GIB, cpu_s=60, file_bytes=2**20, files=100, victim=444), code, tmp_path)
    assert done.stdout.splitlines() == ["memory", str(errno.EFBIG), str(errno.EMFILE), "444", f"{GIB} 0"], done.stderr


def test_processor_time_is_limited(tmp_path: Path) -> None:
    limits = Limits(cpu_s=1)
    done = run(limits, "while True: pass", tmp_path)
    reason = limits.ended_by(done.returncode)
    assert isinstance(reason, LimitReached) and "processor time of a check, 1 s" in reason.detail
    assert status_of(reason) == 413


def test_a_limit_that_is_lower_already_stays(tmp_path: Path) -> None:
    code = "Limits(files=500).apply(); import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert run(Limits(files=100), code, tmp_path).stdout.strip() == "(100, 100)"


def chained(cause: BaseException, error: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "which"),
    [
        (MemoryError(), "memory"),
        (chained(MemoryError(), DamagedFile("a reader has caught it")), "memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "memory",
        ),
        (RuntimeError("std::bad_alloc"), "memory"),
        (OSError(errno.ENOMEM, "no"), "memory"),
        (OSError(errno.EFBIG, "no"), "file"),
        (OSError(errno.EMFILE, "no"), "files"),
        (DamagedFile("the entry 'out of memory.png' is damaged"), None),
        (OSError(errno.ENOENT, "no"), None),
        (RuntimeError("CUDA out of memory. Tried to allocate 9 bytes"), None),
    ],
)
def test_the_limit_behind_an_error_is_recognised(error: BaseException, which: str | None) -> None:
    assert limit_in(error) == which


@pytest.mark.parametrize(
    ("status", "complaints", "words"),
    [
        (-signal.SIGXCPU, "", "VITFIT_JOB_CPU_S"),
        (-signal.SIGXFSZ, "", "VITFIT_FILE_BYTES"),
        (-signal.SIGABRT, "std::bad_alloc", "VITFIT_JOB_MEMORY_BYTES"),
        (-signal.SIGKILL, "", "too little memory"),
        (-signal.SIGSEGV, "", None),
        (1, "MemoryError", None),
    ],
)
def test_how_a_process_ended_tells_the_limit(status: int, complaints: str, words: str | None) -> None:
    reason: VitfitError | None = Settings(job_cpu_s=5).job_limits().ended_by(status, complaints)
    assert (reason is None) if words is None else (reason is not None and words in reason.detail)


def test_the_defaults_are_shares_of_the_memory_of_the_machine() -> None:
    settings = Settings()
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine_bytes() <= most
    assert 3 * GIB <= settings.check_memory_bytes <= settings.job_memory_bytes <= max(most, 3 * GIB)
    assert settings.check_limits().victim > settings.job_limits().victim > 0
    assert "VITFIT_JOB_MEMORY_BYTES" not in settings.worker_environment(), "a node has its own share"
    assert Settings(job_memory_bytes=GIB).worker_environment()["VITFIT_JOB_MEMORY_BYTES"] == str(GIB)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY, "nothing was applied here"
