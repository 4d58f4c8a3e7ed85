"""Command line of the package. The package's docstring describes it."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import benchmarks.comparison as package
from benchmarks.comparison.bench import Bench, Case
from benchmarks.comparison.rows import ROWS, Row
from benchmarks.comparison.table import markdown
from benchmarks.comparison.trained import TRAINED, finetuned
from benchmarks.machine import machine
from latency.devices.setting import Setting, runtime_version
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import ratio
from models.errors import ImpossibleBudget
from models.networks.network import Network
from models.structure import Plan
from search.methods import METHODS

CLUTTER = Path(__file__).parents[1] / "clutter"
TIMING = Effort(seconds=240.0, width=0.02, processes=3, rounds=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CLUTTER)
    parser.add_argument("--data", type=Path, required=True, help="what python -m benchmarks.scenes writes")
    parser.add_argument("--output", type=Path, default=Path("build/comparison"))
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--trained-keeps", type=float, nargs="*", default=[0.6, 0.4])
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor time for each training")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for keep in options.keeps:
            case = Case(options.model, options.data, keep, seed, options.output / "shared")
            for name in options.rows:
                for recovery in (True, False) if ROWS[name].bare else (True,):
                    run(name, ROWS[name], case, recovery, output=options.output)
            for name in TRAINED if keep in options.trained_keeps else ():
                if name in options.rows or name in METHODS:
                    train(name, case, options.seconds, options.output)
    rows = [json.loads(path.read_text()) for path in sorted(options.output.glob("*.json")) if path.stem != "table"]
    timed = time_all(rows, options.output)
    report = {"rows": timed, **machine()}
    (options.output / "table.json").write_text(json.dumps(report, indent=1))
    text = markdown(timed, machine())
    (options.output / "table.md").write_text(text)
    print(text)


def stem_of(name: str, case: Case, suffix: str) -> str:
    return f"{name.replace(' ', '-').replace(',', '')}-{case.keep}-seed{case.seed}{suffix}"


def run(name: str, row: Row, case: Case, recovery: bool, *, output: Path) -> None:
    """Run one row, unless its file exists already."""
    stem = stem_of(name, case, "" if recovery else "-bare")
    path = output / f"{stem}.json"
    if path.exists():
        return
    bench = Bench(case, row.method, row.criterion, basis=row.basis)
    found = {
        "row": name,
        "ours": row.ours,
        "keep": case.keep,
        "seed": case.seed,
        "recovery": recovery,
        "trained": False,
    }
    write(bench, stem, output, found, make=lambda: row.run(bench, recovery))


def train(name: str, case: Case, seconds: float, output: Path) -> None:
    """Train one row, unless its file exists already or there is no network to train."""
    stem, untrained = stem_of(name, case, "-trained"), output / f"{stem_of(name, case, '')}.pt"
    method = TRAINED[name]
    if (output / f"{stem}.json").exists() or (method is None and not untrained.exists()):
        return
    bench = Bench(case, name if method is not None else "joint")
    found = {
        "row": name,
        "ours": name in METHODS,
        "keep": case.keep,
        "seed": case.seed,
        "recovery": True,
        "trained": True,
    }

    def trained() -> tuple[Network, int]:
        if method is not None:
            return method(bench, seconds), 1
        return finetuned(bench, load(bench.original, untrained), seconds), 1

    write(bench, stem, output, found, make=trained)


def write(
    bench: Bench, stem: str, output: Path, found: dict[str, Any], *, make: Callable[[], tuple[Network, int]]
) -> None:
    """Make the network of a row, and write its files and its figures."""
    began = time.perf_counter()
    try:
        network, evaluations = make()
    except ImpossibleBudget as error:
        found |= {"unreachable": error.detail}
    else:
        seconds = time.perf_counter() - began
        network.export(output / f"{stem}.onnx", 1, "cpu")
        save(network, output / f"{stem}.pt")
        if not (output / "original.onnx").exists():
            bench.original.export(output / "original.onnx", 1, "cpu")
        right, images = bench.test(network)
        dense, _ = bench.test(bench.original)
        structure = network.structure
        found |= {
            "correct": right,
            "dense": dense,
            "images": images,
            "evaluations": evaluations,
            "seconds": round(seconds, 1),
            "macs_keep": structure.macs / bench.original.structure.macs,
            "predicted_keep": bench.predicted_keep(network),
            "file": f"{stem}.onnx",
            "tokens": [block.tokens_out for block in structure.blocks],
        }
    (output / f"{stem}.json").write_text(json.dumps(found, indent=1))
    print(stem, found.get("correct", "unreachable"), f"{found.get('predicted_keep', 0):.3f}", flush=True)


def save(network: Network, path: Path) -> None:
    """Save the plan and the weights. A training starts from them."""
    assert network.plan is not None
    torch.save({"plan": network.plan.to_json(), "weights": network.module.state_dict()}, path)


def load(original: Network, path: Path) -> Network:
    stored = torch.load(path, weights_only=True)
    network = original.pruned(Plan.from_json(stored["plan"]), None)
    network.module.load_state_dict(stored["weights"])
    return network


def time_all(rows: list[dict[str, Any]], output: Path) -> list[dict[str, Any]]:
    """Measure all files beside the original in one interleaved run.

    Return the rows with their measured latency ratios.
    """
    kept = [row for row in rows if "file" in row]
    files = [output / "original.onnx", *(output / row["file"] for row in kept)]
    original, *found = Meter(Setting(runtime=runtime_version())).measure(files, TIMING, seed=1)
    measured = {row["file"]: ratio(m, original) for row, m in zip(kept, found, strict=True)}
    return [
        row
        | (
            {
                "measured_keep": measured[row["file"]].value,
                "low": measured[row["file"]].low,
                "high": measured[row["file"]].high,
            }
            if "file" in row
            else {}
        )
        for row in rows
    ]


if __name__ == "__main__":
    main()
