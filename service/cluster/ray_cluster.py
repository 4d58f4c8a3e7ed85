"""Runs the trials of a job on a Ray cluster. Ray is imported only when a setting names a cluster.

The process of the job keeps the journal and the lease, and submits trials to the cluster. The evaluation function
(with its network and images) is sent once to each process that runs trials. The nodes need no shared folder.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from latency.devices.host import patience_s
from models.errors import InvalidRequest
from search.loop.executor import Evaluate, Evaluated, Waiting
from search.policy import Policy
from service.cluster import node
from service.core.errors import ClusterUnavailable, ClusterUnfit
from service.jobs.job_request import JobRequest, TrialResources

log = logging.getLogger("vitfit.cluster")

POLL_S, LOOK_S, KNOCK_S = 0.1, 5.0, 5.0
RETRIES = 3
"""Number of retries of a trial whose node or process died. A trial that raises an exception is not retried."""
Check = Callable[[], None]
"""A function that is called often, and raises when the job has to stop."""


def check_resources(request: JobRequest, address: str | None) -> None:
    """Check that the server can provide the requested resources.

    Raises: InvalidRequest when the request names resources of a cluster but the server has no cluster.
    """
    named = _named(request.trial_resources)
    if address is None and named.keys() - {"CPU"}:
        raise InvalidRequest(
            f"trial_resources names {_shown(named)}, but this server runs trials in the process of the job. Leave out "
            "gpus and custom, or ask the operator to set a Ray cluster (VITFIT_RAY).",
            field="trial_resources",
        )


def cluster_for(request: JobRequest, address: str | None, check: Check) -> "Cluster | None":
    """Connect to the cluster on which the job's trials run. None if they run in the process of the job.

    Raises: InvalidRequest, and whatever `Cluster` raises.
    """
    check_resources(request, address)
    return None if address is None else Cluster(address, request.trial_resources, check)


class Cluster:
    """The connection of a job to a cluster that can run its trials."""

    def __init__(self, address: str, resources: TrialResources, check: Check) -> None:
        """Connect, and check the resources and versions of the nodes.

        Raises: ClusterUnavailable when the cluster does not answer; ClusterUnfit when no node has the resources for a
        trial, or a node has other versions; whatever `check` raises.
        """
        self._ray = connected(address, check)
        self._check, self._resources, self._needs = check, resources, _named(resources)
        self._ray.cloudpickle.register_pickle_by_value(node)
        self._expected = node.versions()
        self._check_versions(self._require_room())

    def place(self, evaluate: Evaluate) -> "ClusterExecutor":
        """Return an executor that runs `evaluate` on the nodes.

        evaluate: the evaluation function; it must be picklable, because it is sent to the nodes.
        """
        threads, custom = max(1, round(self._resources.cpus)), self._resources.custom
        task = self._ray.remote(node.trial).options(
            num_cpus=self._resources.cpus,
            num_gpus=self._resources.gpus,
            resources=custom or None,
            max_retries=RETRIES,
            name="vitfit-trial",
        )
        shared = self._ray.put(evaluate)

        def begin(policy: Policy) -> Any:
            return task.remote(self._expected, [shared], policy.to_json(), threads)

        return ClusterExecutor(self, begin)

    def result(self, reference: Any) -> Evaluated:
        """Wait for a trial and return its result.

        Raises: ClusterUnavailable when the trial was lost more than `RETRIES` times, or when no suitable node is left;
        ClusterUnfit when its node has other versions; whatever the trial or `check` raises.
        """
        looked, missing_since = time.monotonic(), None
        while not self._ray.wait([reference], timeout=POLL_S)[0]:
            self._check()
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                missing_since = None if self._rooms() else self._wait_for_room(missing_since or looked)
        try:
            found = self._ray.get(reference)
        except self._losses as error:
            raise ClusterUnavailable(
                f"A trial was lost {RETRIES + 1} times with its process or node ({type(error).__name__}). A common "
                "reason is that a node has too little memory. Give each trial more cpus, so that fewer trials share a "
                "node, or use a smaller model or data set."
            ) from error
        if isinstance(found, list):
            raise self._other_versions({"a node that joined later": found})
        evaluated: Evaluated = found
        return evaluated

    @property
    def _losses(self) -> tuple[type[Exception], ...]:
        """The exceptions that Ray raises when a node or process has died."""
        known = self._ray.exceptions
        return (
            known.WorkerCrashedError,
            known.ObjectLostError,
            known.NodeDiedError,
            known.OutOfMemoryError,
            known.TaskUnschedulableError,
        )

    def cancel(self, references: Sequence[Any]) -> None:
        """Stop running trials, and remove waiting trials from the queue of Ray."""
        for reference in references:
            self._ray.cancel(reference, force=True)
        if references:
            # The cancel messages must be sent before this process exits.
            self._ray.wait(list(references), num_returns=len(references), timeout=1.0)

    def _rooms(self) -> list[dict[str, Any]]:
        """List the live nodes whose total resources suffice for one trial, busy or not."""
        nodes = [found for found in self._ray.nodes() if found["Alive"]]
        return [found for found in nodes if _fits(self._needs, found["Resources"])]

    def _require_room(self) -> list[dict[str, Any]]:
        if found := self._rooms():
            return found
        nodes = [found for found in self._ray.nodes() if found["Alive"]]
        have = "; ".join(f"{found['NodeManagerAddress']} has {_shown(found['Resources'])}" for found in nodes)
        raise ClusterUnfit(
            f"No node of the cluster can run a trial, which needs {_shown(self._needs)}: "
            f"{have or 'the cluster has no node'}. "
            "Change trial_resources, or add a node that has these resources (ray start --resources).",
            needs=self._needs,
        )

    def _wait_for_room(self, since: float) -> float:
        """Log that no suitable node is left, and return `since`, the time.monotonic() at which that was noticed.

        Raises: ClusterUnavailable when that was longer ago than the job may wait.
        """
        waited, patience = time.monotonic() - since, patience_s()
        log.warning("trials wait for a node with %s: %.0f s of at most %.0f s", _shown(self._needs), waited, patience)
        if waited > patience:
            raise ClusterUnavailable(
                f"The cluster has had no node with {_shown(self._needs)} for {waited:.0f} s. Add such a node, and "
                "submit the job again. The finished trials of this job can be delivered.",
                needs=self._needs,
            )
        return since

    def _check_versions(self, nodes: Sequence[dict[str, Any]]) -> None:
        """Check that all nodes have the server's versions. Raises: ClusterUnfit, which names the nodes and packages."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        for listed in nodes:
            strategy = NodeAffinitySchedulingStrategy(listed["NodeID"], soft=False)
            task = self._ray.remote(node.versions).options(num_cpus=0, scheduling_strategy=strategy)
            asked[f"{listed['NodeManagerAddress']} ({listed['NodeID'][:8]})"] = task.remote()
        bad = {}
        for address, reference in asked.items():
            while not self._ray.wait([reference], timeout=POLL_S)[0]:
                self._check()
            try:
                found = self._ray.get(reference)
            except self._losses as error:  # a node that died a moment ago is still listed
                log.warning("the node %s is gone: %s", address, type(error).__name__)
                continue
            if differences := node.differences(self._expected, found):
                bad[address] = differences
        if bad:
            raise self._other_versions(bad)

    def _other_versions(self, bad: Mapping[str, Sequence[str]]) -> ClusterUnfit:
        shown = "; ".join(f"{address}: {', '.join(differences)}" for address, differences in bad.items())
        return ClusterUnfit(
            f"Nodes of the cluster have other versions than this server, so their scores could differ. {shown}. "
            "Install the same versions on all nodes (requirements.txt).",
            nodes={address: list(differences) for address, differences in bad.items()},
        )


class ClusterExecutor:
    """A `search.loop.executor.Executor` on a cluster. Leaving its `with` block cancels the trials that still run."""

    def __init__(self, cluster: Cluster, begin: Callable[[Policy], Any]) -> None:
        self._cluster, self._begin = cluster, begin
        self._running: list[Any] = []

    def begin(self, policy: Policy) -> Waiting:
        reference = self._begin(policy)
        self._running.append(reference)

        def wait() -> Evaluated:
            found = self._cluster.result(reference)
            self._running.remove(reference)
            return found

        return wait

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._cluster.cancel(self._running)
        self._running = []


def connected(address: str, check: Check) -> Any:
    """Connect to the cluster and return the module `ray`.

    Raises: ClusterUnavailable when Ray is not installed or the cluster does not answer in time; whatever `check`
    raises.
    """
    if find_spec("ray") is None:
        raise ClusterUnavailable(
            f"VITFIT_RAY is {address!r}, but Ray is not installed. Install ray (pip install ray), or unset VITFIT_RAY."
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    since = time.monotonic()
    while not ray.is_initialized():
        check()
        try:
            _knock(address)
            ray.init(address=address, namespace="vitfit", logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError) as error:
            waited, patience = time.monotonic() - since, patience_s()
            log.warning(
                "the cluster at %s does not answer (%s): %.0f s of at most %.0f s", address, error, waited, patience
            )
            if waited > patience:
                raise ClusterUnavailable(
                    f"The Ray cluster at {address!r} (VITFIT_RAY) has not answered for {waited:.0f} s: {error}. Start "
                    "the cluster (ray start), or correct VITFIT_RAY. Without VITFIT_RAY, trials run in the process of "
                    "the job."
                ) from error
            time.sleep(min(1.0, patience))
    return ray


def _knock(address: str) -> None:
    """Check that the port of the cluster is open, because Ray itself would try for minutes. Raises: OSError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), KNOCK_S).close()


def _named(resources: TrialResources) -> dict[str, float]:
    """Return the requested resources under the names that Ray uses."""
    gpus = {"GPU": resources.gpus} if resources.gpus else {}
    return {"CPU": resources.cpus, **gpus, **resources.custom}


def _fits(needs: Mapping[str, float], has: Mapping[str, float]) -> bool:
    return all(has.get(name, 0.0) >= amount for name, amount in needs.items())


def _shown(resources: Mapping[str, float]) -> str:
    """Format resources for a message: CPU, GPU and custom names, without Ray's internal resources."""
    ours = {
        name: amount
        for name, amount in resources.items()
        if not name.startswith(("node:", "accelerator_type:")) and name not in ("memory", "object_store_memory")
    }
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(ours.items())) or "nothing"
