"""Claim: a table fitted in about 1 minute predicts unseen policies: median error 2 %, 95 % of them within 5 %.

    python -m benchmarks.prediction                                       digits, DeiT-T, DeiT-S, PVTv2-B0: 45 minutes
    python -m benchmarks.prediction --models digits --policies 20         2 minutes

For each model, the script fits the latency table as a job does. It then draws random policies from the spaces of all
methods, predicts their latency, and writes the predictions to a file. After that, it exports and measures the networks,
a few at a time, interleaved with the original. The script does not run a model again if its result file exists.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import Interval, ratio
from latency.prediction.pricer import Prediction
from latency.prediction.table import Table, TablePricer
from models.errors import InvalidRequest
from models.loading.load_model import open_model, untrained
from models.networks.network import Network
from models.structure import Plan, Structure
from search.methods import METHODS, check_suits
from search.ranking import BlockRanking, Ranking
from search.spaces import space_of
from service.jobs.job_request import JobRequest
from service.pipeline.pricing import DeviceSetting, Pricing
from service.pipeline.profiling import fit
from service.pipeline.verification import Verifier

DIGITS = Path(__file__).parent / "digits"
MODELS = ("digits", "deit_tiny_patch16_224", "deit_small_patch16_224", "pvt_v2_b0")
TOGETHER = 5
"""Number of policies that are measured in one interleaved run with the original."""
EFFORT = Effort(seconds=20.0, width=0.02, processes=4, rounds=8)
NEVER_PRICED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("build/prediction"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        if not (options.output / f"{name}.json").exists():
            found = one_model(name, options.policies, options.output)
            (options.output / f"{name}.json").write_text(json.dumps({**found, **machine()}, indent=1))
    rows = [json.loads((options.output / f"{name}.json").read_text()) for name in options.models]
    print(table(rows))


def one_model(name: str, policies: int, output: Path) -> dict[str, Any]:
    network = open_model(DIGITS) if name == "digits" else untrained(name)
    budget = {"metric": "latency_keep", "limit": 0.6, "device": "cpu", "setting": {"threads": 1}}
    pricing = Pricing(JobRequest.model_validate({"model": "x", "budgets": [budget]}), network.structure)
    (place,) = pricing.measured_places
    with tempfile.TemporaryDirectory() as scratch:
        verifier, start = Verifier(network, pricing, Path(scratch), 0), time.perf_counter()
        fitted = fit(place, network, verifier)
        fit_s = time.perf_counter() - start
        plans = list(unseen(network.structure, policies))
        structures = [plan.apply_to(network.structure) for _, plan in plans]
        predicted = TablePricer(fitted).price(structures)
        _write(output / f"{name}.predicted.json", fitted, predicted)
        measured: list[Interval] = []
        for first in range(0, policies, TOGETHER):
            measured += _measured(network, [plan for _, plan in plans[first : first + TOGETHER]], place, Path(scratch))
            print(f"{name}: {len(measured)} of {policies}", flush=True)
    keeps, halves = predicted.ms / fitted.original_ms, predicted.half_width_ms / fitted.original_ms
    rows = [
        {"method": method, "predicted": float(k), "half_width": float(h), **m.to_json()}
        for (method, _), k, h, m in zip(plans, keeps, halves, measured, strict=True)
    ]
    return {
        "model": name,
        "fit_s": fit_s,
        "pricing_per_s": pricing_rate(TablePricer(fitted), network.structure),
        "rows": rows,
    }


def _write(path: Path, fitted: Table, predicted: Prediction) -> None:
    """Write the predictions and the table.

    The stored table makes it possible to compare another form of it with the same measurements later.
    """
    path.write_text(json.dumps({"table": fitted.to_json(), "ms": predicted.ms.tolist()}))


def _measured(network: Network, plans: list[Plan], place: DeviceSetting, folder: Path) -> list[Interval]:
    original = folder / "original-b1.onnx"
    files = [folder / f"unseen{i}.onnx" for i in range(len(plans))]
    for plan, file in zip(plans, files, strict=True):
        network.pruned(plan, None).export(file, 1, "cpu")
    first, *others = Meter(place[1]).measure([original, *files], EFFORT, seed=1)
    return [ratio(other, first) for other in others]


def unseen(structure: Structure, count: int, seed: int = 4) -> Iterator[tuple[str, Plan]]:
    """Yield random plans, each with the name of its method.

    The methods take turns. Direction and depth in the method's space are random, and so is the ranking of the members.
    Do not use seeds 1 and 7 for a test: the form of the table was chosen on their plans.
    """
    draw, methods = random.Random(seed), [method for method in METHODS.values() if _suits(method.name, structure)]
    for number in range(count):
        method = methods[number % len(methods)]
        space = space_of(method, structure, random_ranking(structure, 10_000 * seed + number))
        direction = [draw.random() for _ in space.dimensions]
        yield method.name, space.plan(space.along(direction, draw.uniform(0.25, 1.6)))


def _suits(name: str, structure: Structure) -> bool:
    if "inputs" in METHODS[name].axes and "inputs" in structure.fixed:
        return False
    try:
        check_suits(METHODS[name], structure)
    except InvalidRequest:
        return False
    return True


def random_ranking(structure: Structure, seed: int) -> Ranking:
    """Return random scores for every axis that any space uses."""
    draw, blocks = np.random.default_rng(seed), []
    for block in structure.blocks:
        a, mlp = block.attention, block.mlp
        assert a is not None and mlp is not None
        blocks.append(
            BlockRanking(
                draw.random(a.heads),
                draw.random((a.heads, a.qk_dim)),
                draw.random((a.heads, a.v_dim)),
                draw.random(mlp.neurons),
                None if "halves" in structure.fixed else draw.random(2),
                (draw.random(block.width), draw.random(a.heads * a.v_dim), draw.random(block.width)),
                draw.random((a.heads, a.qk_dim)),
            )
        )
    embed = None if "embed" in structure.fixed else draw.random(structure.width)
    return Ranking("random", tuple(blocks), True, 0, embed=embed, ranges=draw.random(len(blocks)))


def pricing_rate(pricer: TablePricer, original: Structure) -> float:
    """Return the number of structures priced per second. None of them was priced before."""
    new = [plan.apply_to(original) for _, plan in unseen(original, NEVER_PRICED, seed=2)]
    start = time.perf_counter()
    pricer.price(new)
    return len(new) / (time.perf_counter() - start)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | policies | median error | 95 % within | within 5 % | 90 % interval covers | "
        "its half-width, median | measured to | fitted in | prices per s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in rows:
        predicted, half, value, low, high = (
            np.asarray([row[name] for row in found["rows"]])
            for name in ("predicted", "half_width", "value", "low", "high")
        )
        error = np.abs(predicted / value - 1)
        lines.append(
            f"| {found['model']} | {len(error)} | {100 * np.median(error):.1f} % "
            f"| {100 * np.quantile(error, 0.95):.1f} % "
            f"| {100 * (error <= 0.05).mean():.0f} % | {100 * (np.abs(predicted - value) <= half).mean():.0f} % "
            f"| {100 * np.median(half / predicted):.1f} % | +-{100 * np.median((high - low) / value) / 2:.1f} % "
            f"| {found['fit_s']:.0f} s | {found['pricing_per_s']:,.0f} |"
        )
    last = rows[-1]
    return "\n".join([*lines, "", ", ".join(last[name] for name in ("machine", "versions", "date"))])


if __name__ == "__main__":
    main()
