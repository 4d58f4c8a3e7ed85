"""What this machine is called. Standard library only."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's name as the kernel gives it; part of the key of stored tables."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
