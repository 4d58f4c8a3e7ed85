"""Upper limits for a process that opens files of users: memory, processor time, size of a file, open files.

The kernel enforces them (setrlimit), also for the children of the process. Such a process is also the first that Linux
ends when the machine's memory is full, so the server survives.
"""

import contextlib
import errno
import re
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from os import sysconf
from pathlib import Path
from typing import Final, Literal

from models.errors import VitfitError
from models.record import Record
from service.core.errors import LimitReached

Reached = Literal["memory", "cpu", "file", "files"]
LEAST_BYTES: Final = 3 * 2**30
"""Smallest default for memory. torch and its libraries take about 1 GB of it."""
GRACE_S: Final = 5
"""A process that survives the signal about its processor time is killed after so many further seconds."""
OOM_SCORE: Final = Path("/proc/self/oom_score_adj")
MEMORY_FILES: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""The memory limit of a container, in the two versions of control groups."""
OUT_OF_MEMORY: Final = re.compile(
    r"can't allocate memory|not enough memory|cannot allocate memory|failed to allocate memory|bad.?alloc"
    r"|out of memory|MemoryError|can't start new thread",
    re.IGNORECASE,
)
"""Messages of torch, ONNX Runtime, C++ and child processes without memory."""
NUMBERS: Final[dict[int, Reached]] = {errno.ENOMEM: "memory", errno.EFBIG: "file", errno.EMFILE: "files"}


@dataclass(frozen=True)
class Limits(Record):
    """The limits of one process. None: no limit.

    noun: what the process does, as in "a check". prefix: the beginning of the names of the settings. victim: added to
    the rank among the processes that Linux ends if the memory is full, from 0 to 1000.
    """

    noun: str = "a check"
    prefix: str = "VITFIT_CHECK"
    memory_bytes: int | None = None
    cpu_s: int | None = None
    file_bytes: int | None = None
    files: int | None = None
    victim: int = 500

    def apply(self) -> None:
        """Set the limits for this process and its later children."""
        # The limit is on data, not on addresses: torch and CUDA reserve many more addresses than they use.
        _set(resource.RLIMIT_DATA, self.memory_bytes)
        _set(resource.RLIMIT_CPU, self.cpu_s, GRACE_S)
        _set(resource.RLIMIT_FSIZE, self.file_bytes)
        _set(resource.RLIMIT_NOFILE, self.files)
        _set(resource.RLIMIT_CORE, 0)
        with contextlib.suppress(OSError):  # other systems have no such file
            OOM_SCORE.write_text(str(max(self.victim, int(OOM_SCORE.read_text()))))

    def reached(self, which: Reached) -> LimitReached:
        """Build the error for a limit that was reached."""
        amount, setting = {
            "memory": (f"the memory limit of {self.noun}, {_mb(self.memory_bytes)}", f"{self.prefix}_MEMORY_BYTES"),
            "cpu": (f"the limit on processor time of {self.noun}, {self.cpu_s or 0:,} s", f"{self.prefix}_CPU_S"),
            "file": (
                f"the limit on the size of a file that {self.noun} writes, {_mb(self.file_bytes)}",
                "VITFIT_FILE_BYTES",
            ),
            "files": (f"the limit on open files of {self.noun}, {self.files or 0:,}", "VITFIT_OPEN_FILES"),
        }[which]
        return LimitReached(
            f"It needs more than {amount}. Use a smaller model or less data, or ask the operator to raise {setting}.",
            limit=which,
            setting=setting,
        )

    def ended_by(self, status: int, complaints: str = "") -> VitfitError | None:
        """Return why a process with these limits ended, if its exit status tells it. A signal is negative."""
        if status == -signal.SIGXCPU:
            return self.reached("cpu")
        if status == -signal.SIGXFSZ:
            return self.reached("file")
        if status < 0 and OUT_OF_MEMORY.search(complaints):
            return self.reached("memory")
        if status == -signal.SIGKILL:
            return LimitReached(
                f"The process of {self.noun} was killed. The usual reason is that the machine has too little memory for"
                " it. Use a smaller model or less data, or try again when the machine is less busy.",
                limit="memory",
            )
        return None


def limit_in(error: BaseException) -> Reached | None:
    """Return the limit that caused an error: either the error itself or one in its chain of causes says so."""
    return next((found for link in _chain(error) if (found := _limit_of(link)) is not None), None)


def _limit_of(error: BaseException) -> Reached | None:
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, VitfitError):  # its text may repeat words of a file
        return None
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return NUMBERS[error.errno]
    text = str(error)
    return "memory" if OUT_OF_MEMORY.search(text) and "CUDA" not in text else None  # a GPU has memory of its own


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _set(kind: int, most: int | None, grace: int = 0) -> None:
    """Lower a limit of this process. A limit that is lower already stays."""
    if most is None:
        return
    _, hard = resource.getrlimit(kind)
    bound = most + grace if hard == resource.RLIM_INFINITY else min(hard, most + grace)
    resource.setrlimit(kind, (min(most, bound), bound))


def _mb(number: int | None) -> str:
    return f"{(number or 0) / 10**6:,.0f} MB"


def machine_bytes() -> int:
    """Return the memory of this machine, or of its container if that has less, in bytes."""
    whole = sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")
    for file in MEMORY_FILES:
        with contextlib.suppress(OSError, ValueError):  # the text "max" is no limit
            whole = min(whole, int(file.read_text()))
    return whole


def share_of_memory(share: float) -> int:
    """Return a share of the machine's memory in bytes, but at least `LEAST_BYTES`."""
    return max(LEAST_BYTES, int(share * machine_bytes()))
