"""Tests of trials on a Ray cluster with two nodes on this machine.

The trials equal those of one process. The tests include lost nodes, cancels and wrong clusters.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from models.errors import Canceled
from search.budgets import Budget, Budgets
from search.loop.executor import Executor, LocalExecutor
from search.loop.search import Search
from search.loop.trial import Trial
from service.cluster import node
from service.cluster.ray_cluster import Cluster
from service.core.errors import ClusterUnfit
from service.core.processes import ROOT
from service.jobs.job_request import TrialResources
from service.jobs.journal import MemoryJournal
from tests.support.running import is_alive, wait_until
from tests.support.small_jobs import Workshop, budget
from tests.support.worlds import macs_keep, small_space

if TYPE_CHECKING:
    from tests.support.ray_world import World

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray: Any = pytest.importorskip("ray")
cluster_utils: Any = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow
SPACE, TRIALS = small_space(), 6


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with one CPU each. The second node also has a `phone`."""
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1, resources={"phone": 1})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def world(tmp_path: Path) -> "World":
    from tests.support.ray_world import World

    (tmp_path / "evaluated").mkdir()
    return World(tmp_path / "evaluated")


def search(place: Executor) -> list[Trial]:
    budgets = Budgets((Budget("macs_keep", 0.6),))
    return Search(SPACE, budgets, macs_keep(SPACE), place, lambda _: None, 0, parallel=2).run([], TRIALS)


def told(trials: list[Trial]) -> list[Trial]:
    """Return the trials without their seconds."""
    return [dataclasses.replace(trial, seconds=0.0) for trial in trials]


def connect(two_nodes: Any, check: Any = lambda: None, **resources: Any) -> Cluster:
    return Cluster(two_nodes.address, TrialResources(**resources), check)


def test_the_trials_are_those_of_one_process(two_nodes: Any, world: "World") -> None:
    with connect(two_nodes).place(world) as place:
        found = search(place)
    assert os.getpid() not in world.processes and len(world.processes) == TRIALS
    assert told(found) == told(search(LocalExecutor(world)))


def test_a_killed_node_costs_its_trial_in_flight_and_that_runs_again_elsewhere(two_nodes: Any, world: "World") -> None:
    victim = two_nodes.add_node(num_cpus=1, resources={"phone": 1})
    world = dataclasses.replace(world, stuck_on=victim.node_id)

    def kill() -> None:
        if victim.node_id in world.nodes and not world.go.exists():
            two_nodes.remove_node(victim, allow_graceful=False)
            world.go.touch()

    with connect(two_nodes, kill, custom={"phone": 1}).place(world) as place:
        found = search(place)
    assert world.nodes.count(victim.node_id) == 1 and len(world.nodes) == TRIALS + 1
    assert told(found) == told(search(LocalExecutor(dataclasses.replace(world, stuck_on=""))))


def test_what_a_trial_raises_is_not_tried_again(two_nodes: Any, world: "World", tmp_path: Path) -> None:
    nowhere = dataclasses.replace(world, folder=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError), connect(two_nodes).place(nowhere) as place:
        search(place)


def test_a_cancel_ends_the_trials_on_the_nodes(two_nodes: Any, world: "World") -> None:
    def check() -> None:
        if len(world.processes) == 2:
            raise Canceled("The job was canceled.")

    slow = dataclasses.replace(world, seconds=600)
    with pytest.raises(Canceled), connect(two_nodes, check).place(slow) as place:
        search(place)
    wait_until(lambda: not any(is_alive(pid) for pid in world.processes), "the end of their processes")


def test_resources_that_people_named_decide_where_a_trial_runs(two_nodes: Any, world: "World") -> None:
    with connect(two_nodes, custom={"phone": 1}).place(world) as place:
        search(place)
    assert len(set(world.processes)) == 1, "one phone, one trial at a time"


@pytest.mark.parametrize("resources", [{"gpus": 1}, {"cpus": 64}, {"custom": {"telescope": 1}}])
def test_a_cluster_without_the_resource_is_refused_before_work(two_nodes: Any, resources: dict[str, Any]) -> None:
    with pytest.raises(
        ClusterUnfit, match=r"No node of the cluster can run a trial.*GPU 1|CPU 64|telescope 1"
    ) as refused:
        connect(two_nodes, **resources)
    assert "CPU 1, phone 1" in refused.value.detail, "what the nodes have"


def test_a_node_with_other_versions_is_refused_before_work(
    two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in node.ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "models" / "prune.py").open("a") as file:
        file.write("# another checkout")
    other = two_nodes.add_node(num_cpus=1, resources={"other": 1}, env_vars={"PYTHONPATH": str(tmp_path)})
    ray.shutdown()
    monkeypatch.chdir(tmp_path)  # Ray looks for packages first in the folder of its driver
    try:
        with pytest.raises(
            ClusterUnfit, match=f"vitfit-server .* instead of {node.versions()['vitfit-server']}"
        ) as bad:
            connect(two_nodes, custom={"other": 1})
    finally:
        ray.shutdown()
        two_nodes.remove_node(other)
    assert "torch" not in bad.value.detail and len(bad.value.facts["nodes"]) == 1


@pytest.mark.usefixtures("brief")
def test_a_whole_job_has_the_trials_that_it_has_without_a_cluster(two_nodes: Any, workshop: Workshop) -> None:
    options: dict[str, Any] = {"trials": TRIALS, "parallel_trials": 2}
    here = workshop.run(budget("macs_keep", 0.6), **options)
    there = workshop.run(budget("macs_keep", 0.6), cluster=two_nodes.address, **options)
    one, other = here.journal.trials(), there.journal.trials()
    assert [row["policy"] for row in one] == [row["policy"] for row in other]
    assert [row["score"] for row in one] == pytest.approx([row["score"] for row in other], abs=1e-6)
    assert there.json("plan.json") == here.json("plan.json")


@pytest.mark.usefixtures("brief")
def test_a_job_that_names_what_no_node_has_ends_before_its_first_stage_of_work(
    two_nodes: Any, workshop: Workshop
) -> None:
    journal = MemoryJournal()
    with pytest.raises(ClusterUnfit, match="telescope"):
        resources = {"custom": {"telescope": 1}}
        workshop.run(budget("macs_keep", 0.6), journal=journal, cluster=two_nodes.address, trial_resources=resources)
    assert journal.stages == ["validating"]
