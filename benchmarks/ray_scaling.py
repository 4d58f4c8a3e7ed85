"""Claim: with six trials at a time, 1, 2 and 4 workers of a Ray cluster reach 0.9 of linear speed.

    python -m benchmarks.ray_scaling                        about 5 minutes; needs pip install vitfit-server[ray]

Each trial is a sleep of fixed length. A worker is a node with one CPU on this machine. The search proposes policies as
it does in a job, and all runs must find the same trials. The processes start before the timing starts. A separate
measurement, with an evaluation that does nothing, shows what a trial costs beyond its evaluation.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster as LocalCluster

from benchmarks.machine import machine
from models.loading.load_model import open_model
from models.structure import Structure
from search.budgets import Budget, Budgets
from search.loop.executor import Executor
from search.loop.search import Search
from search.loop.trial import Score, Trial
from search.policy import Policy
from search.ranking import Array, BlockRanking, Ranking
from search.spaces.compact import CompactSpace
from service.cluster.ray_cluster import Cluster
from service.jobs.job_request import TrialResources

WORKERS, AT_A_TIME, EMPTY = (1, 2, 4), 6, 50
"""Numbers of workers, trials at a time, and trials that do nothing. There are two more trials at a time than workers:
the search proposes the next trials while these two wait, so that no worker has to wait."""
DIGITS = Path(__file__).parent / "digits"


@dataclasses.dataclass(frozen=True)
class Sleep:
    """An evaluation that sleeps, and then gives a score with a single maximum."""

    seconds: float

    def __call__(self, policy: Policy) -> Score:
        time.sleep(self.seconds)
        return Score(-((policy.neurons - 0.5) ** 2) - (policy.heads - 0.8) ** 2, None)


def digits_space() -> CompactSpace:
    """Return a space of the digits model with random scores, which are enough because nothing is pruned here."""
    structure, random = open_model(DIGITS).structure, np.random.default_rng(0)
    blocks = []
    for block in structure.blocks:
        attention, mlp = block.attention, block.mlp
        assert attention is not None and mlp is not None
        heads = attention.heads
        dims = random.random((heads, attention.qk_dim)), random.random((heads, attention.v_dim))
        blocks.append(BlockRanking(random.random(heads), *dims, random.random(mlp.neurons)))
    return CompactSpace(structure, Ranking("chance", tuple(blocks), True, 0), ("heads", "qk", "v", "neurons", "tokens"))


SPACE = digits_space()


def price(structures: Sequence[Structure]) -> Array:
    return np.asarray([[s.macs / SPACE.structure.macs] for s in structures])


def search(place: Executor, trials: int) -> list[Trial]:
    budgets = Budgets((Budget("macs_keep", 0.6),))
    return Search(SPACE, budgets, price, place, lambda _: None, 0, parallel=AT_A_TIME).run([], trials)


def warm(cluster: Cluster, workers: int) -> None:
    """Start the process of each worker, with everything imported."""
    with cluster.place(Sleep(1.0)) as place:
        for wait in [place.begin(Policy()) for _ in range(3 * workers)]:
            wait()


def timed(cluster: Cluster, seconds: float, trials: int) -> tuple[float, list[Trial]]:
    with cluster.place(Sleep(seconds)) as place:
        began = time.perf_counter()
        found = search(place, trials)
        return time.perf_counter() - began, [dataclasses.replace(trial, seconds=0.0) for trial in found]


def overhead(cluster: Cluster) -> list[float]:
    """Return seconds from the start of a trial that does nothing until its score is known, for EMPTY trials."""
    found = []
    with cluster.place(Sleep(0.0)) as place:
        place.begin(Policy())()
        for _ in range(EMPTY):
            began = time.perf_counter()
            place.begin(Policy())()
            found.append(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of an evaluation")
    parser.add_argument("--trials", type=int, default=24)
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before: list[Trial] = []
    print("| workers | seconds | of linear |", "|---|---|---|", sep="\n")
    for workers in WORKERS:
        local = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1})
        for _ in range(workers - 1):
            local.add_node(num_cpus=1)
        cluster = Cluster(local.address, TrialResources(), lambda: None)
        warm(cluster, workers)
        took, found = timed(cluster, options.seconds, options.trials)
        assert not before or found == before, "another number of workers found other trials"
        before = found
        print(f"| {workers} | {took:.1f} | {options.trials * options.seconds / workers / took:.3f} |", flush=True)
        empty = overhead(cluster) if workers == 1 else []
        ray.shutdown()
        local.shutdown()  # type: ignore[no-untyped-call]
        if empty:
            low, middle, high = (1e3 * float(np.quantile(empty, q)) for q in (0.05, 0.5, 0.95))
            costs = f"a trial costs {middle:.1f} ms beyond its evaluation (5 to 95 %: {low:.1f} to {high:.1f})"
    print(costs, ", ".join(machine().values()), sep="\n")


if __name__ == "__main__":
    main()
