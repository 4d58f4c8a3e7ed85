"""How a device runs a network: part of every latency and of its key. Standard library only."""

import importlib.metadata
from dataclasses import dataclass

from models.record import Record


def runtime_version() -> str:
    return f"onnxruntime {importlib.metadata.version('onnxruntime')}"


@dataclass(frozen=True)
class Setting(Record):
    """threads: intra-op, each pinned to a core. batch: images per run; latencies are per run."""

    threads: int = 1
    batch: int = 1
    precision: str = "fp32"
    provider: str = "CPUExecutionProvider"
    runtime: str = ""
    """Left empty for profiles, whose runtime is part of the profile."""

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}, batch {self.batch}, {self.precision}"
