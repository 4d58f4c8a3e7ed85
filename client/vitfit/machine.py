"""What this machine is called, and its GPUs. Standard library only."""

import platform
from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia/gpus")


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


def gpu_names() -> list[str]:
    """Of NVIDIA's GPUs as their driver gives them, in the order of their bus addresses, which is that of their numbers."""
    try:
        files = sorted(NVIDIA.glob("*/information"))
    except OSError:
        return []
    texts = [file.read_text().splitlines() for file in files]
    return [
        next((line.partition(":")[2].strip() for line in lines if line.startswith("Model")), "GPU") for lines in texts
    ]
