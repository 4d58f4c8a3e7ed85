"""Functions that run on a node of a cluster.

This module is pickled by value and sent to the node. It therefore works even where vitfit is not installed, and
imports only the standard library.
"""

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
    """Return the versions of everything that can change the score of a trial.

    The part after "+" is dropped, because builds of one torch release for different devices count as equal.
    """
    found = {name: _version(name).partition("+")[0] for name in PACKAGES}
    return {**found, "python": platform.python_version(), "vitfit-server": _code()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def _code() -> str:
    """Return a digest of vitfit's source code, as twelve hex digits.

    The version number is not enough: two checkouts can have the same version but different code.
    """
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
    """Describe each package whose version differs, as text for people."""
    return [
        f"{name} {there.get(name, MISSING)} instead of {here[name]}" for name in here if here[name] != there.get(name)
    ]


def trial(expected: dict[str, str], shared: list[Any], policy: dict[str, Any], threads: int) -> Any:
    """Evaluate one trial. This is the Ray task of `Cluster.place`.

    Args:
        expected: the versions of the server.
        shared: a list with the Ray reference to the evaluation function. Inside a list, Ray does not
            replace the reference by its value.
        policy: the JSON form of the policy.
        threads: the number of threads for torch.

    Returns: `search.loop.executor.Evaluated`, or the list of differences if the node has other versions.
    """
    loaded: Any = sys.modules.get("service.cluster.trial_task")
    if loaded is None or loaded.agreed != expected:  # once per process: the loaded code does not change afterwards
        if found := differences(expected, versions()):
            return found
        from service.cluster import trial_task as cluster_task

        loaded, cluster_task.agreed = cluster_task, expected
    return loaded.evaluated(shared[0], policy, threads)


def job(expected: dict[str, str], environment: dict[str, str]) -> Any:
    """Run one queued job. This is the Ray task of the dispatcher.

    Returns: whether a job was claimed, or the list of differences if the node has other versions.
    """
    if found := differences(expected, versions()):
        return found
    from service.cluster import job_task as cluster_job

    return cluster_job.run(environment)
