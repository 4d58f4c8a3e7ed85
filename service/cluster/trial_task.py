"""Evaluates one trial on a node of a cluster, in a process that Ray reuses for later trials."""

from typing import Any

import ray
import torch

from latency.measuring.machine_lock import working
from models.throttle import paced
from search.loop.executor import Evaluate, Evaluated, timed
from search.policy import Policy

agreed: dict[str, str] = {}
"""The server's versions, set once they were found equal to the versions in this process (service/cluster/node.py)."""
_held: dict[str, Evaluate] = {}
"""The evaluation function by the id of its Ray reference.

Only the latest one is kept, because it holds a network and images.
"""


def evaluated(reference: Any, policy: dict[str, Any], threads: int) -> Evaluated:
    torch.set_num_threads(threads)
    with paced(working):  # waits while another process on this machine holds the machine lock to measure
        return timed(_fetched(reference), Policy.from_json(policy))


def _fetched(reference: Any) -> Evaluate:
    key = reference.hex()
    if key not in _held:
        _held.clear()
        _held[key] = ray.get(reference)
    return _held[key]
