"""The devices that can be named in a job: this machine's CPU, profiles, those that users added, and those on which an agent
stands. Standard library only."""

import json
import os
import statistics
from pathlib import Path
from typing import Any

from vitfit.machine import cpu_name, gpu_names

from latency.devices.mailbox import Mailbox
from latency.devices.setting import has_cuda, runtime_version
from models.errors import UnknownName

CPU, CUDA = "cpu", "cuda:"
PROFILES = Path(__file__).parent / "profiles"
ADDED = "VITFIT_DEVICES"
"""Environment variable: the folder of devices that users added, the same for a server and all of its processes."""
AGENT = "agent"
"""Kind of a device that is measured by an agent; its name begins so too."""
AGENT_SILENT_S = 90.0
"""An agent that has not been heard of for so long is not reachable now. It asks for work every half minute."""


def device_files() -> dict[str, Path]:
    """By name; what ships cannot be replaced."""
    users = sorted(Path(os.environ[ADDED]).glob("*.json")) if ADDED in os.environ else []
    return {path.stem: path for path in [*users, *sorted(PROFILES.glob("*.json"))]}


def device_names() -> list[str]:
    return [CPU, *gpus(), *sorted(device_files())]


def gpus() -> dict[str, str]:
    """This machine's by the names that jobs use, cuda:0 and so on, where the runtime for them is installed."""
    return {f"{CUDA}{number}": name for number, name in enumerate(gpu_names())} if has_cuda() else {}


def is_here(name: str) -> bool:
    """Whether this machine measures it itself."""
    return name == CPU or name.startswith(CUDA)


def check_device(name: str) -> None:
    """Raises: UnknownName with the known devices."""
    if name not in device_names():
        raise UnknownName("device", name, device_names())


def is_reachable(name: str) -> bool:
    """Whether files can be measured on it, not only priced."""
    return is_here(name) or read_device(name).get("kind") == AGENT


def read_device(name: str) -> dict[str, Any]:
    """A profile, or what an agent told of its device. Raises: UnknownName."""
    check_device(name)
    found: dict[str, Any] = json.loads(device_files()[name].read_text())
    return found


def mailbox_of(name: str) -> Mailbox:
    """Of a device with an agent."""
    return Mailbox(device_files()[name].with_suffix(""))


def machine_of(name: str) -> str:
    """The processor: part of the key of stored tables."""
    return cpu_name() if name == CPU else gpus().get(name) or str(read_device(name)["machine"])


def runtime_of(name: str) -> str:
    """Of a device that is measured."""
    return runtime_version() if is_here(name) else str(read_device(name)["runtime"])


def describe_devices() -> list[dict[str, Any]]:
    here = [_describe_here(name) for name in (CPU, *gpus())]
    return [*here, *(describe_file(path) for _, path in sorted(device_files().items()))]


def describe_device(name: str) -> dict[str, Any]:
    """JSON for `GET /v1/devices/{name}`. Raises: UnknownName."""
    check_device(name)
    return _describe_here(name) if is_here(name) else describe_file(device_files()[name])


def _describe_here(name: str) -> dict[str, Any]:
    """This machine's CPU, or one of its GPUs."""
    if name == CPU:
        threads, what = len(os.sched_getaffinity(0)), f"this machine's CPU: {cpu_name()}, ONNX Runtime"
    else:
        threads, what = 1, f"{gpus()[name]}, ONNX Runtime with CUDA, inputs and outputs on the GPU"
    return {
        "name": name,
        "kind": "measured",
        "reachable": True,
        "threads": threads,
        "precision": "fp32",
        "description": what,
        "source": "measured by each job, original and candidate interleaved",
    }


def describe_file(path: Path) -> dict[str, Any]:
    """Of a profile, or of a device with an agent."""
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
        "description": f"{device['machine']}, {device['runtime']}, with an agent",
        "source": "measured by each job on the device, original and candidate interleaved",
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
    """Of the published latencies that were not used to fit the profile; None: nothing to check it against."""
    held = [c["predicted_ms"] / c["published_ms"] - 1 for c in checks if not c["fitted"]]
    if not held:
        return None
    return {"checked": len(held), "median": statistics.median(map(abs, held)), "worst": max(held, key=abs)}
