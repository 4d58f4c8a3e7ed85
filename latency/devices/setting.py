"""How a device runs a network. The setting is part of every latency and of its key. Standard library only."""

import importlib.metadata
from dataclasses import dataclass

from models.record import Record

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"


def runtime_version() -> str:
    """Name and version of the installed runtime. The one for GPUs is looked up first: it can also run on the CPU."""
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "no onnxruntime"


def has_cuda() -> bool:
    return runtime_version().startswith("onnxruntime-gpu ")


@dataclass(frozen=True)
class Setting(Record):
    """threads: intra-op threads, each pinned to a core. batch: images per run; latencies are per run."""

    threads: int = 1
    batch: int = 1
    precision: str = "fp32"
    provider: str = CPU_PROVIDER
    runtime: str = ""
    """Empty for profiles, because the runtime is part of the profile."""

    def __str__(self) -> str:
        if self.provider == CUDA_PROVIDER:
            return f"batch {self.batch}, {self.precision}"
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}, batch {self.batch}, {self.precision}"
