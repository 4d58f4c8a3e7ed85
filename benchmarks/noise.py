"""Claim: the ratios from repeated measurements of one pair agree within 2 %, while other load comes and goes.

    python -m benchmarks.noise                                  about 5 minutes on 2 cores

The pair is the digits model and a pruned version that keeps about half of it. One background process for each core
multiplies matrices for 3.1 s, rests for 2.3 s, and repeats this. This process does not know when measurements run. The
table shows each ratio beside the absolute latency of the original.
"""

import argparse
import itertools
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from latency.devices.setting import Setting, runtime_version
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import ratio
from latency.prediction.probes import probe_plans
from models.loading.load_model import open_model

DIGITS = Path(__file__).parent / "digits"
EFFORT = Effort(seconds=20.0, width=0.01, processes=4, rounds=10)
BUSY_S, IDLE_S = 3.1, 2.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=4, help="measurements with the load, and as many without")
    parser.add_argument("--output", type=Path, default=Path("build/noise.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measured(Path(folder), options.times))
    text = table(rows)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"rows": rows, **machine()}, indent=1))


def measured(folder: Path, times: int) -> list[dict[str, Any]]:
    network = open_model(DIGITS)
    files = [folder / "original.onnx", folder / "pruned.onnx"]
    plan = next(itertools.islice(probe_plans(network.structure), 1, None))
    network.export(files[0], 1, "cpu")
    network.pruned(plan, None).export(files[1], 1, "cpu")
    rows = []
    for number in range(times):
        for loaded in (False, True):
            workers = [
                multiprocessing.Process(target=load, daemon=True) for _ in range(multiprocessing.cpu_count() * loaded)
            ]
            for worker in workers:
                worker.start()
            original, pruned = Meter(Setting(runtime=runtime_version())).measure(files, EFFORT, seed=number)
            for worker in workers:
                worker.terminate()
            found = ratio(pruned, original)
            rows.append({"load": loaded, "original_ms": original.p50_ms.value, **found.to_json()})
            print(rows[-1], flush=True)
    return rows


def load() -> None:
    """Alternate between work and rest until the process is ended."""
    x = np.random.default_rng(0).random((400, 400))
    while True:
        until = time.monotonic() + BUSY_S
        while time.monotonic() < until:
            x @ x
        time.sleep(IDLE_S)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| background load | original, ms | pruned / original | interval |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {'on and off' if row['load'] else 'none'} | {row['original_ms']:.3f} | {row['value']:.4f} "
            f"| {row['low']:.4f} to {row['high']:.4f} |"
        )
    values = np.asarray([row["value"] for row in rows])
    times = np.asarray([row["original_ms"] for row in rows])
    lines += [
        "",
        f"Ratios are within {100 * (values.max() / values.min() - 1):.1f} % of each other; "
        f"the original's own time within {100 * (times.max() / times.min() - 1):.1f} %.",
        ", ".join(machine().values()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
