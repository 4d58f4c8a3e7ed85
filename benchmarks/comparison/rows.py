"""The rows of the comparison: how each vitfit method and each alternative makes its network."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from benchmarks.comparison.bench import Bench
from benchmarks.comparison.torch_pruning import Importance, kept_by_torch_pruning
from models.errors import ImpossibleBudget
from models.networks.network import Network
from models.structure import BlockPlan, Plan, identity
from search.loop.decode import decode
from search.loop.searcher import Canonical, at_random
from search.methods import Basis
from search.spaces.compact import CompactSpace
from search.token_rule import TokenRule

TRIALS, MANY_TRIALS = 40, 120
Found = tuple[Network, int]
"""The network, and the number of evaluations that were needed to choose it."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    run: makes the network from (bench, recovery); `recovery` says whether to use closed-form recovery. method,
    criterion: what ranks the members. basis: None for the method's own. ours: whether this is a method of vitfit.
    """

    run: Callable[[Bench, bool], Found]
    method: str = "joint"
    criterion: str | None = None
    basis: Basis | None = None
    ours: bool = False
    bare: bool = True
    """Whether the row is also run without recovery."""


def method(bench: Bench, recovery: bool) -> Found:
    """Run a vitfit method as a job does: in its own space, with a Gaussian process."""
    network, trials = bench.search(bench.ranked.space, recovery, TRIALS)
    return network, len(trials)


def random_search(trials: int) -> Callable[[Bench, bool], Found]:
    def run(bench: Bench, recovery: bool) -> Found:
        network, found = bench.search(bench.ranked.space, recovery, trials, at_random)
        return network, len(found)

    return run


def gp_sampler(bench: Bench, recovery: bool) -> Found:
    """Search with the proposals of Optuna's GPSampler instead of vitfit's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    network, found = bench.search(bench.ranked.space, recovery, TRIALS, _by_optuna)
    return network, len(found)


def _by_optuna(
    points: Sequence[Sequence[float]], scores: Sequence[float], dimensions: int, seed: int, _canonical: Canonical
) -> list[list[float]]:
    names = [f"x{i}" for i in range(dimensions)]
    space = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names}
    sampler = optuna.samplers.GPSampler(seed=seed % 2**32, n_startup_trials=5)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point, score in zip(points, scores, strict=True):
        params = dict(zip(names, point, strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=score))
    asked = study.ask(space)
    return [[asked.params[name] for name in names], *at_random(points, scores, dimensions, seed)]


def uniform(bench: Bench, recovery: bool) -> Found:
    """Prune by magnitude, with the same keep ratio of heads and neurons in every block."""
    ranking = bench.ranked.space.ranking  # type: ignore[attr-defined]
    space = CompactSpace(bench.original.structure, ranking, ("heads", "neurons"))
    policy = decode(space, [1.0] * len(space.dimensions), bench.pricing.budgets, bench.pricing.price)
    return bench.finished(space.plan(policy), recovery), 1


def merging(bench: Bench, recovery: bool) -> Found:
    """Prune by token merging alone (ToMe). Every block merges the same number of tokens."""
    structure = bench.original.structure
    patches, whole, rule = (
        structure.tokens - structure.prefix,
        identity(structure),
        TokenRule("merge", score="similarity"),
    )
    for step in range(1, patches // len(whole.blocks) + 1):
        blocks = []
        for i, block in enumerate(whole.blocks):
            kept = max(1, patches - step * (i + 1))
            blocks.append(BlockPlan(block.source, block.heads, block.neurons, tokens=rule.plan(kept)))
        plan = Plan(whole.embed, tuple(blocks))
        if bench.fits(bench.ranked.prune(plan, False)):
            return bench.finished(plan, recovery), 1
    raise ImpossibleBudget("Merging tokens alone does not reach this budget")


def torch_pruning(importance: Importance) -> Callable[[Bench, bool], Found]:
    def run(bench: Bench, recovery: bool) -> Found:
        """Find the largest keep ratio whose predicted latency is within the budget.

        A smaller keep ratio never costs more, so a binary search finds the largest one.
        """

        def plan_of(keep: float) -> Plan:
            return kept_by_torch_pruning(bench.original, importance, keep, bench.evaluation.calibration)

        keeps = [float(keep) for keep in np.arange(0.04, 0.99, 0.02)]
        most = bisect.bisect_left(
            keeps, True, key=lambda keep: not bench.fits(bench.ranked.prune(plan_of(keep), False))
        )
        if most == 0:
            raise ImpossibleBudget(
                "Torch-Pruning does not reach this budget with one head and few neurons in every block"
            )
        return bench.finished(plan_of(keeps[most - 1]), recovery), 1

    return run


ROWS: dict[str, Row] = {
    "joint": Row(method, ours=True, bare=False),
    "joint, chosen basis": Row(method, basis="chosen", ours=True, bare=False),
    "mdc": Row(method, "mdc", ours=True, bare=False),
    "cp-vit": Row(method, "cp-vit", ours=True, bare=False),
    "up-vit": Row(method, "up-vit", ours=True, bare=False),
    "Torch-Pruning magnitude": Row(torch_pruning("magnitude")),
    "Torch-Pruning Taylor": Row(torch_pruning("taylor")),
    "uniform magnitude": Row(uniform, criterion="magnitude"),
    "token merging": Row(merging, bare=False),
    "joint, random search 40": Row(random_search(TRIALS), bare=False),
    "joint, random search 120": Row(random_search(MANY_TRIALS), bare=False),
    "joint, Optuna GPSampler 40": Row(gp_sampler, bare=False),
}
