"""The devices that a job can name: this machine's CPU and GPUs, profiles, devices that users added, and devices that
run an agent. Standard library only.
"""

import json
import os
import statistics
from pathlib import Path
from typing import Any

from vitfit.machine import cpu_name, gpu_names

from latency.devices.host import added_devices
from latency.devices.mailbox import Mailbox
from latency.devices.setting import has_cuda, runtime_version
from models.errors import UnknownName

CPU, CUDA = "cpu", "cuda:"
PROFILES = Path(__file__).parent / "profiles"
AGENT = "agent"
"""Kind of a device that an agent measures. The name of the device begins with this word too."""
AGENT_SILENT_S = 90.0
"""Seconds of silence after which an agent counts as unreachable. Agents ask for work every half minute."""


def device_files() -> dict[str, Path]:
    """The files of devices, by name. A device of a user cannot replace one that vitfit ships with."""
    return {path.stem: path for path in [*added_devices(), *sorted(PROFILES.glob("*.json"))]}


def device_names() -> list[str]:
    return [CPU, *gpus(), *sorted(device_files())]


def gpus() -> dict[str, str]:
    """This machine's GPUs: name in jobs (cuda:0 and so on) -> model. Empty if the runtime for GPUs is not installed."""
    return {f"{CUDA}{number}": name for number, name in enumerate(gpu_names())} if has_cuda() else {}


def is_here(name: str) -> bool:
    """True if this machine measures the device itself."""
    return name == CPU or name.startswith(CUDA)


def check_device(name: str) -> None:
    """Check that the device exists. Raises: UnknownName with the known devices."""
    if name not in device_names():
        raise UnknownName("device", name, device_names())


def is_reachable(name: str) -> bool:
    """True if files can be measured on the device, not only priced."""
    return is_here(name) or read_device(name).get("kind") == AGENT


def read_device(name: str) -> dict[str, Any]:
    """A profile, or the description that an agent gave of its device. Raises: UnknownName."""
    check_device(name)
    found: dict[str, Any] = json.loads(device_files()[name].read_text())
    return found


def mailbox_of(name: str) -> Mailbox:
    """The mailbox of a device with an agent."""
    return Mailbox(device_files()[name].with_suffix(""))


def machine_of(name: str) -> str:
    """The name of the device's processor. It is part of the key of stored tables."""
    return cpu_name() if name == CPU else gpus().get(name) or str(read_device(name)["machine"])


def runtime_of(name: str) -> str:
    """The runtime of a device on which files are measured."""
    return runtime_version() if is_here(name) else str(read_device(name)["runtime"])


def describe_devices() -> list[dict[str, Any]]:
    here = [_describe_here(name) for name in (CPU, *gpus())]
    return [*here, *(describe_file(path) for _, path in sorted(device_files().items()))]


def describe_device(name: str) -> dict[str, Any]:
    """JSON for `GET /v1/devices/{name}`. Raises: UnknownName."""
    check_device(name)
    return _describe_here(name) if is_here(name) else describe_file(device_files()[name])


def _describe_here(name: str) -> dict[str, Any]:
    """Describe this machine's CPU, or one of its GPUs."""
    if name == CPU:
        threads, what = len(os.sched_getaffinity(0)), f"the CPU of this machine: {cpu_name()}, with ONNX Runtime"
    else:
        threads, what = 1, f"{gpus()[name]}, with ONNX Runtime and CUDA; inputs and outputs are in GPU memory"
    return {
        "name": name,
        "kind": "measured",
        "reachable": True,
        "threads": threads,
        "precision": "fp32",
        "description": what,
        "source": "each job measures the original and the candidates in turn",
    }


def describe_file(path: Path) -> dict[str, Any]:
    """Describe a profile, or a device with an agent, by its file."""
    found = json.loads(path.read_text())
    return (
        describe_agent(found, Mailbox(path.with_suffix(""))) if found.get("kind") == AGENT else describe_profile(found)
    )


def describe_agent(device: dict[str, Any], mailbox: Mailbox) -> dict[str, Any]:
    silent = mailbox.silent_s()
    return {
        **device,
        "reachable": silent <= AGENT_SILENT_S,
        "silent_s": None if silent == float("inf") else round(silent),
        "precision": "fp32",
        "description": f"{device['machine']}, with {device['runtime']} and an agent",
        "source": "each job measures the original and the candidates in turn on the device",
    }


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
        "relative_uncertainty": profile.get("relative_uncertainty"),
        "network": profile["original"]["name"] if profile["model"] == "table" else None,
        "checks": profile.get("checks", []),
        "error": _error_of(profile.get("checks", [])),
    }


def _error_of(checks: list[dict[str, Any]]) -> dict[str, float] | None:
    """Error against the published latencies that were not used to fit the profile. None: there are none."""
    held = [c["predicted_ms"] / c["published_ms"] - 1 for c in checks if not c["fitted"]]
    if not held:
        return None
    return {"checked": len(held), "median": statistics.median(map(abs, held)), "worst": max(held, key=abs)}
