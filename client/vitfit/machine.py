"""The names of this machine's processor and GPUs, and the limits of this process. Uses only the standard library."""

import errno
import platform
from pathlib import Path

try:
    import resource
except ImportError:  # there is no such module on Windows
    resource = None  # type: ignore[assignment]

NVIDIA = Path("/proc/driver/nvidia/gpus")
NO_MEMORY = ("failed to map segment", "annot allocate memory", "not enough memory", "bad_alloc")
"""Words of libraries that got no memory."""


def cpu_name() -> str:
    """Return the processor's name as the kernel gives it. The name is part of the key of stored latency tables."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """Return the names of the NVIDIA GPUs as their driver gives them.

    They are ordered by bus address, which is also the order of the GPU numbers.
    """
    try:
        files = sorted(NVIDIA.glob("*/information"))
    except OSError:
        return []
    texts = [file.read_text().splitlines() for file in files]
    return [
        next((line.partition(":")[2].strip() for line in lines if line.startswith("Model")), "GPU") for lines in texts
    ]


def limit_hit(error: BaseException) -> str | None:
    """Return a sentence that names the limit of this process (`ulimit`) that caused an error; None if none did."""
    text, number = str(error), getattr(error, "errno", None)
    if number == errno.EFBIG:
        return _limited("RLIMIT_FSIZE", "the size of a file in bytes", "-f")
    if number == errno.EMFILE:
        return _limited("RLIMIT_NOFILE", "the number of open files", "-n")
    if "can't start new thread" in text or number == errno.EAGAIN:
        return _limited("RLIMIT_NPROC", "the number of processes and threads", "-u")
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(sign in text for sign in NO_MEMORY):
        return _limited("RLIMIT_AS", "the memory in bytes", "-v")
    return None


def _limited(name: str, what: str, option: str) -> str | None:
    if resource is None:
        return None
    soft = resource.getrlimit(getattr(resource, name))[0]
    if soft == resource.RLIM_INFINITY:
        return None
    return f"A limit of this shell stopped vitfit: {what} is limited to {soft:,}. Raise it with `ulimit {option}`."
