"""The devices that can be named in a job: this machine's CPU, and profiles. Standard library only."""

import json
import os
import platform
from pathlib import Path
from typing import Any

from models.errors import UnknownName

CPU = "cpu"
PROFILES = Path(__file__).parent / "profiles"


def device_names() -> list[str]:
    return [CPU, *sorted(path.stem for path in PROFILES.glob("*.json"))]


def check_device(name: str) -> None:
    """Raises: UnknownName with the known devices."""
    if name not in device_names():
        raise UnknownName("device", name, device_names())


def is_reachable(name: str) -> bool:
    """Whether files can be measured on it from here."""
    return name == CPU


def read_profile(name: str) -> dict[str, Any]:
    check_device(name)
    profile: dict[str, Any] = json.loads((PROFILES / f"{name}.json").read_text())
    return profile


def describe_devices() -> list[dict[str, Any]]:
    return [describe_device(name) for name in device_names()]


def describe_device(name: str) -> dict[str, Any]:
    """JSON for `GET /v1/devices/{name}`. Raises: UnknownName."""
    check_device(name)
    if name == CPU:
        return {
            "name": CPU,
            "kind": "measured",
            "reachable": True,
            "threads": len(os.sched_getaffinity(0)),
            "precision": "fp32",
            "description": f"this machine's CPU: {cpu_name()}, ONNX Runtime",
            "source": "measured by each job, original and candidate interleaved",
        }
    profile = read_profile(name)
    return {
        "name": name,
        "kind": "profile",
        "reachable": False,
        "threads": 1,
        "precision": profile["precision"],
        "description": profile["description"],
        "source": profile["source"],
    }


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
