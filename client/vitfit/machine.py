"""The names of this machine's processor and GPUs. Uses only the standard library."""

import platform
from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia/gpus")


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
