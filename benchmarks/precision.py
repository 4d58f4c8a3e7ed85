"""Claim: at equal latency, a search over pruning and int8 loses less than pruning alone or int8 with uniform pruning.

    python -m benchmarks.precision --scenes scenes.npz        digits and the cluttered task, 45 minutes

A budget is a share of the original's fp32 latency. For each task and budget, the script makes three networks:
    joint                   the search decides how much to prune; everything is in fp32
    int8, uniform pruning   all linear layers are in int8, and every block has the same keep ratio, by magnitude
    joint with int8         the search decides how much to prune and what to quantise

All networks get recovery. The script scores them before and after the same short training. One latency table predicts
the latency of all networks. If a network is measured above its budget, its search runs again with a lower target, at
most twice. At the end, one interleaved run measures the original and all files of a task. The table shows this latency,
also where it is above the budget. The correct answers come from the files themselves, in ONNX Runtime, on the full test
split.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison.bench import Bench, Case
from benchmarks.comparison.trained import finetuned
from benchmarks.machine import machine
from latency.devices.setting import Setting, runtime_version
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import Interval, ratio
from models.evaluation.metrics import correct
from models.export.onnx_export import OnnxFile
from models.networks.network import Network
from models.structure import LAYERS, Precision
from search.loop.decode import decode
from search.spaces.compact import CompactSpace
from search.spaces.precision import PrecisionSpace
from service.pipeline.verification import VERIFY

HERE = Path(__file__).parent
TRIALS, AIMS = 40, 3
TIMING = Effort(seconds=120.0, width=0.02, processes=4, rounds=8)
ROWS: dict[str, tuple[Precision, ...]] = {
    "joint": ("fp32",),
    "int8, uniform pruning": ("int8",),
    "joint with int8": ("fp32", "int8"),
}


@dataclass(frozen=True)
class Found:
    """A network whose measured latency is within its budget, or the last network that was tried."""

    network: Network
    measured: Interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--scenes", type=Path, help="what python -m benchmarks.scenes writes; left out: the digits alone"
    )
    parser.add_argument("--output", type=Path, default=Path("build/precision"))
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.4, 0.3])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seconds", type=float, default=45.0, help="of processor time for each training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = {"digits": HERE / "digits" / "digits.npz"} | ({"clutter": options.scenes} if options.scenes else {})
    rows: list[dict[str, Any]] = []
    for task, data in tasks.items():
        folder = options.output / task
        made = [
            row
            for keep in options.keeps
            for name in ROWS
            for row in make(task, data, name, keep, folder=folder, trials=options.trials, seconds=options.seconds)
        ]
        rows += timed(made, folder)
    (options.output / "table.json").write_text(json.dumps({"rows": rows, **machine()}, indent=1))
    print(table(rows))
    print(", ".join(machine().values()))


def make(
    task: str, data: Path, name: str, keep: float, *, folder: Path, trials: int, seconds: float
) -> list[dict[str, Any]]:
    """Return the row before training and the row after it. Compute them unless their file exists already."""
    stem = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{keep}"
    path = stem.with_name(f"{stem.name}.json")
    if path.exists():
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        return rows
    criterion = "magnitude" if "uniform" in name else None
    bench = Bench(Case(HERE / task, data, keep, 0, folder / "shared", ROWS[name]), criterion=criterion, aimed=True)
    found = searched(bench, name, stem, trials)
    trained = finetuned(bench, found.network, seconds)
    rows = []
    for kind, network in (("", found.network), ("-trained", trained)):
        file = stem.with_name(f"{stem.name}{kind}.onnx")
        network.export(file, 1, "cpu")
        right, dense, images = answers(bench, file)
        exact = sum(len(block.exact) for block in network.plan.blocks) if network.plan else 0
        layers = len(LAYERS) * len(bench.original.structure.blocks)
        rows.append(
            {
                "task": task,
                "row": name,
                "keep": keep,
                "trained": bool(kind),
                "right": right,
                "dense": dense,
                "images": images,
                "macs_keep": network.structure.macs / bench.original.structure.macs,
                "file": file.name,
                "int8": 1 - exact / layers if network.rounding is not None else 0.0,
            }
        )
    path.write_text(json.dumps(rows, indent=1))
    print(task, name, keep, [row["dense"] - row["right"] for row in rows], flush=True)
    return rows


def searched(bench: Bench, name: str, stem: Path, trials: int) -> Found:
    """Search for a network as a job does.

    If the measured latency is above the budget, the measurement corrects the latency table, the target is lowered, and
    the search runs again. There are at most AIMS searches.
    """
    (place,) = bench.pricing.measured_places
    original = stem.with_name("original.onnx")
    if not original.exists():
        bench.original.export(original, 1, "cpu")
    for _ in range(AIMS):
        network = uniform(bench) if "uniform" in name else joint(bench, trials)
        file = stem.with_name(f"{stem.name}.tried.onnx")
        network.export(file, 1, "cpu")
        first, second = Meter(place[1]).measure([original, file], VERIFY, seed=1)
        found = Found(network, ratio(second, first))
        if found.measured.high <= bench.case.keep:
            break
        bench.pricing.aim_lower()
        bench.learn(network, found.measured, first.p50_ms.value)
    return found


def joint(bench: Bench, trials: int) -> Network:
    return bench.search(bench.ranked.space, True, trials)[0]


def uniform(bench: Bench) -> Network:
    """Make a network in int8 with the same keep ratio of heads and neurons in every block."""
    found = bench.ranked.space
    assert isinstance(found, PrecisionSpace) and isinstance(found.inner, CompactSpace)
    inner = CompactSpace(bench.original.structure, found.inner.ranking, ("heads", "neurons"))
    order = [(place, layer) for place in range(len(bench.original.structure.blocks)) for layer in LAYERS]
    space = PrecisionSpace(inner, order, ("int8",))
    policy = decode(space, [1.0] * len(space.dimensions), bench.budgets, bench.pricing.price)
    return bench.finished(space.plan(policy), True)


def answers(bench: Bench, file: Path) -> tuple[int, int, int]:
    """Return the correct answers of the file, those of the original, and the number of test images."""
    opened, right, dense, images = OnnxFile(file), 0, 0, 0
    for chunk in bench.evaluation.data.batches("test", 500):
        assert chunk.labels is not None
        right += correct(opened.outputs(chunk.images, 1), chunk.labels)
        dense += correct(bench.original.outputs(chunk.images), chunk.labels)
        images += len(chunk.images)
    return right, dense, images


def timed(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Measure the files of one task beside the original, in one interleaved run.

    Training does not change the latency. So only untrained files are measured, and trained rows get the same latency.
    """
    files = [folder / row["file"] for row in rows if not row["trained"]]
    original, *found = Meter(Setting(runtime=runtime_version())).measure(
        [folder / "original.onnx", *files], TIMING, seed=2
    )
    measured = {file.name: ratio(m, original) for file, m in zip(files, found, strict=True)}
    return [row | {"measured": measured[row["file"].replace("-trained", "")].to_json()} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| task | budget | network | points lost | after training | MACs kept | layers in int8 | "
        "latency kept, measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, trained in zip(rows[::2], rows[1::2], strict=True):
        lost, after = (100 * (r["dense"] - r["right"]) / r["images"] for r in (row, trained))
        m = row["measured"]
        lines.append(
            f"| {row['task']} | {row['keep']} | {row['row']} | {lost:.2f} | {after:.2f} | {row['macs_keep']:.3f} | "
            f"{100 * row['int8']:.0f} % | {m['value']:.3f} ({m['low']:.3f} to {m['high']:.3f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
