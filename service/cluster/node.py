"""What a node of a cluster says of itself. Sent to the node as it stands here, so it needs nothing but Python there."""

import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "timm", "torch")
ROOMS = ("latency", "models", "search", "service")
MISSING = "missing"


def versions() -> dict[str, str]:
    """Of what decides a score. torch for another device is the same torch: what follows the "+" does not count."""
    found = {name: _version(name).partition("+")[0] for name in PACKAGES}
    return {**found, "python": platform.python_version(), "vitfit-server": _code()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def _code() -> str:
    """Twelve hex digits of the server's source: two checkouts may have the same version and other contents."""
    digest = hashlib.sha256()
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        if spec is None or spec.origin is None:
            return MISSING
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def differences(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """For people, one for each package."""
    return [
        f"{name} {there.get(name, MISSING)} instead of {here[name]}" for name in here if here[name] != there.get(name)
    ]


def trial(expected: dict[str, str], shared: list[Any], policy: dict[str, Any], threads: int) -> Any:
    """search.loop.executor.Evaluated; or, on a node that joined with other versions, the list of their differences.

    shared: a reference to what evaluates, in a list so that Ray leaves it as a reference.
    """
    loaded: Any = sys.modules.get("service.cluster.trial_task")
    if loaded is None or loaded.agreed != expected:  # once for each process: later it runs what it has loaded
        if found := differences(expected, versions()):
            return found
        from service.cluster import trial_task as cluster_task

        loaded, cluster_task.agreed = cluster_task, expected
    return loaded.evaluated(shared[0], policy, threads)


def job(expected: dict[str, str], environment: dict[str, str]) -> Any:
    """Whether there was a queued job, which this node has then seen through; or the list of the node's other versions."""
    if found := differences(expected, versions()):
        return found
    from service.cluster import job_task as cluster_job

    return cluster_job.run(environment)
