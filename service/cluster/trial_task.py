"""One trial on a node of a cluster, in a process that Ray keeps for the next one."""

from typing import Any

import ray
import torch

from latency.measuring.machine_lock import working
from models.throttle import paced
from search.loop.executor import Evaluate, Evaluated, timed
from search.policy import Policy

agreed: dict[str, str] = {}
"""The server's versions, once they were found to be this process's (service/cluster/node.py)."""
_held: dict[str, Evaluate] = {}
"""What evaluates, by its reference: of the last job only, because it holds a network and images."""


def evaluated(reference: Any, policy: dict[str, Any], threads: int) -> Evaluated:
    torch.set_num_threads(threads)
    with paced(working):  # others measure on this machine undisturbed
        return timed(_fetched(reference), Policy.from_json(policy))


def _fetched(reference: Any) -> Evaluate:
    key = reference.hex()
    if key not in _held:
        _held.clear()
        _held[key] = ray.get(reference)
    return _held[key]
