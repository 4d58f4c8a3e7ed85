"""The devices that can be named in a job: this machine's CPU, profiles, and those that users added. Standard library only."""

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from models.errors import UnknownName

CPU = "cpu"
PROFILES = Path(__file__).parent / "profiles"
ADDED = "VITFIT_DEVICES"
"""Environment variable: the folder of the profiles that users added, the same for a server and all of its processes."""


def profile_files() -> dict[str, Path]:
    """By name; what ships cannot be replaced."""
    users = sorted(Path(os.environ[ADDED]).glob("*.json")) if ADDED in os.environ else []
    return {path.stem: path for path in [*users, *sorted(PROFILES.glob("*.json"))]}


def device_names() -> list[str]:
    return [CPU, *sorted(profile_files())]


def check_device(name: str) -> None:
    """Raises: UnknownName with the known devices."""
    if name not in device_names():
        raise UnknownName("device", name, device_names())


def is_reachable(name: str) -> bool:
    """Whether files can be measured on it from here."""
    return name == CPU


def read_profile(name: str) -> dict[str, Any]:
    check_device(name)
    profile: dict[str, Any] = json.loads(profile_files()[name].read_text())
    return profile


def describe_devices() -> list[dict[str, Any]]:
    profiles = sorted(profile_files().items())
    return [describe_device(CPU), *(describe_profile(json.loads(path.read_text())) for _, path in profiles)]


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
    return describe_profile(read_profile(name))


def describe_profile(profile: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": profile["name"],
        "kind": "profile",
        "reachable": False,
        "threads": profile.get("threads", 1),
        "precision": profile["precision"],
        "description": profile["description"],
        "source": profile["source"],
        "date": profile["date"],
        "relative_uncertainty": profile["relative_uncertainty"],
        "checks": profile.get("checks", []),
        "error": _error_of(profile.get("checks", [])),
    }


def _error_of(checks: list[dict[str, Any]]) -> dict[str, float] | None:
    """Of the published latencies that were not used to fit the profile; None: nothing to check it against."""
    held = [c["predicted_ms"] / c["published_ms"] - 1 for c in checks if not c["fitted"]]
    if not held:
        return None
    return {"checked": len(held), "median": statistics.median(map(abs, held)), "worst": max(held, key=abs)}


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
