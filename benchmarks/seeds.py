"""Claim: with 10 seeds, a job meets its budget 10 times when its file is measured again, at a small loss of accuracy.

    python -m benchmarks.seeds --keep 0.6 --seeds 10        about 15 minutes on 2 cores

Each seed is a full job: the digits model, and "at most KEEP of the original's latency on this CPU, one thread". After
all jobs, fresh processes measure every delivered file beside the original again, with fresh samples. The output folder
keeps the results of the jobs, and the script does not run finished jobs again.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from latency.devices.setting import Setting, runtime_version
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import ratio
from service.jobs.job_request import JobRequest
from service.pipeline.compress import compress

DIGITS = Path(__file__).parent / "digits"
AGAIN = Effort(seconds=10.0, width=0.02, processes=4, rounds=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("build/seeds"))
    options = parser.parse_args()
    rows = [run(seed, options.keep, options.trials, options.output) for seed in range(options.seeds)]
    rows = [measured_again(row, options.keep) for row in rows]
    print(table(rows, options.keep))
    (options.output / f"seeds-{options.keep}.json").write_text(json.dumps({"rows": rows, **machine()}, indent=1))


def run(seed: int, keep: float, trials: int, output: Path) -> dict[str, Any]:
    folder = output / f"keep{keep}-seed{seed}"
    if not (folder / "report.json").exists():
        request = JobRequest.model_validate(
            {
                "model": "digits",
                "dataset": "digits",
                "trials": trials,
                "seed": seed,
                "budgets": [{"metric": "latency_keep", "limit": keep, "device": "cpu", "setting": {"threads": 1}}],
            }
        )
        model = json.loads((DIGITS / "model.json").read_text())
        compress(request, model, DIGITS / "weights.safetensors", DIGITS / "digits.npz", output=folder)
    report = json.loads((folder / "report.json").read_text())
    before, after = report["original"], report["delivered"]
    return {
        "seed": seed,
        "folder": str(folder),
        "macs_keep": after["macs"] / before["macs"],
        "in_job": report["ratio"]["measured"],
        "predicted": report["ratio"]["predicted"],
        "before": before["correct"],
        "after": after["correct"],
        "images": after["images"],
    }


def measured_again(row: dict[str, Any], keep: float) -> dict[str, Any]:
    files = [Path(row["folder"]) / name for name in ("original.onnx", "model.cpu.onnx")]
    original, delivered = Meter(Setting(runtime=runtime_version())).measure(files, AGAIN, seed=1000 + row["seed"])
    again = ratio(delivered, original)
    return row | {"again": again.value, "low": again.low, "high": again.high, "met": again.value <= keep}


def table(rows: list[dict[str, Any]], keep: float) -> str:
    lines = [
        f"Budget: {keep} of the original's latency, digits model, one thread, batch 1.",
        "",
        "| seed | MACs kept | latency kept: predicted | measured in the job | measured afterwards | met | accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['seed']} | {r['macs_keep']:.3f} | {r['predicted']:.3f} | {r['in_job']:.3f} "
            f"| {r['again']:.3f} ({r['low']:.3f} to {r['high']:.3f}) | {'yes' if r['met'] else 'NO'} "
            f"| {r['before']}/{r['images']} -> {r['after']}/{r['images']} |"
        )
    losses = [100 * (r["before"] - r["after"]) / r["images"] for r in rows]
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    lines += [
        "",
        f"Met {sum(r['met'] for r in rows)} of {len(rows)}; mean loss {statistics.mean(losses):.2f} points "
        f"(standard deviation {spread:.2f}) without fine-tuning.",
        ", ".join(machine().values()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
