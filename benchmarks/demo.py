"""Demo of the full product on this machine, through its REST API (`make demo`). It takes at most 3 minutes on 2 cores.

The demo submits a transformer for digits (97.8 % correct on 500 test images) and the budget "at most 0.6 of its latency
on one thread". It computes the final table from the downloaded files. ONNX Runtime gives the accuracy on the test
images, and fresh processes measure the latency. The exit status is 1 if the job fails, if its guarantee is not
`measured`, if the budget is missed, or if the exported file disagrees with PyTorch.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table
from vitfit import Budget, Client, Job, VitfitError
from vitfit.model_source import model_source
from vitfit.render import followed

from benchmarks.serving import serving
from latency.devices.setting import Setting, runtime_version
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import Interval, ratio
from models.data.preprocessing import Preprocessing
from models.export.onnx_export import run_onnx

DIGITS = Path(__file__).parent / "digits"
BUDGET = Budget("latency_keep", 0.6, device="cpu", threads=1, batch=1)
console = Console()


@dataclass(frozen=True)
class Figures:
    """Figures of one file, found by this script."""

    correct: int
    images: int
    p50_ms: Interval
    size_bytes: int

    @property
    def accuracy(self) -> str:
        return f"{self.correct}/{self.images}  {100 * self.correct / self.images:.1f} %"

    @property
    def latency(self) -> str:
        return f"{self.p50_ms.value:.3f} ms  ({self.p50_ms.low:.3f} .. {self.p50_ms.high:.3f})"


def main() -> int:
    """Run the demo and return the exit status: 0 for success, 1 for failure."""
    arguments = _arguments()
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="vitfit-demo-") as folder, serving(Path(folder)) as address:
            job = compress(address, arguments.trials, arguments.output)
    except VitfitError as error:
        console.print(f"error: {error.detail}", style="red", markup=False, soft_wrap=True)
        return 1
    if job.status != "succeeded":
        reason = job.error.detail if job.error else "no reason was given"
        console.print(f"The job ended as {job.status}: {reason}", style="red", markup=False, soft_wrap=True)
        return 1
    problems = present(job, arguments.output, arguments.seconds)  # after the server: it would disturb the measurement
    for problem in problems:
        console.print(problem, style="red", markup=False, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} s in all", highlight=False)
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo-out"), help="folder for the job's files")
    parser.add_argument("--trials", type=int, default=32, help="policies to try")
    parser.add_argument("--seconds", type=float, default=15.0, help="time for measuring the delivered file")
    return parser.parse_args()


def compress(address: str, trials: int, output: Path) -> Job:
    """Upload the inputs, submit a job, follow it and download its files, as any user would.

    Return the job after its end.
    """
    source = model_source(str(DIGITS))
    with Client(address) as client:
        model = client.upload_source(source)
        data = client.upload_dataset(DIGITS / "digits.npz")
        job = client.submit(model, [BUDGET], dataset=data, trials=trials, name="demo")
        console.print(f"{job.id} at {address}: at most {BUDGET.limit:g} of the latency, one thread", highlight=False)
        *_, job = followed(client.watch(job), console)
        if job.status == "succeeded":
            output.mkdir(parents=True, exist_ok=True)
            for artifact in client.artifacts(job):
                client.download(job, artifact, output)
    return job


def present(job: Job, output: Path, seconds: float) -> list[str]:
    """Measure the files in `output`, print the table, and return a list of problems."""
    files = [output / "original.onnx", output / "model.cpu.onnx"]
    if missing := [str(file) for file in files if not file.is_file()]:
        return [f"The job left no {', '.join(missing)}."]
    report = read_report(output / "report.json")
    setting = Setting(BUDGET.threads, BUDGET.batch, runtime=runtime_version())
    with console.status("measuring both files in fresh processes"):
        measured = Meter(setting).measure(files, Effort(seconds=seconds), seed=int(time.time()))
    keep = ratio(measured[1], measured[0])
    before, after = (
        Figures(*count_correct(file), item.p50_ms, file.stat().st_size)
        for file, item in zip(files, measured, strict=True)
    )
    console.print(make_table(before, after, keep, report))
    console.print(f"{measured[0].machine}, {setting}, {setting.runtime}", highlight=False, markup=False)
    for name in ("report.html", "report.json"):
        console.print(f"{name}: {(output / name).resolve()}", highlight=False, markup=False, soft_wrap=True)
    return problems_of(job, keep, report)


def count_correct(file: Path) -> tuple[int, int]:
    """Return (correct, images) for the test split. The file's metadata says how to prepare the pictures."""
    with np.load(DIGITS / "digits.npz") as data:
        test = data["split"] == "test"
        images, labels = data["images"][test], data["labels"][test]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    preprocessing = Preprocessing.from_metadata(session.get_modelmeta().custom_metadata_map)
    logits = run_onnx(file, preprocessing.apply(images), BUDGET.batch)
    return int((logits.argmax(1).numpy() == labels).sum()), len(labels)


def read_report(path: Path) -> dict[str, Any]:
    """Read the job's report. It holds figures that an ONNX file does not show."""
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def make_table(before: Figures, after: Figures, keep: Interval, report: dict[str, Any]) -> Table:
    """Return one table: the figures measured here, the figures of the job, and each block before and after."""
    original, delivered = report["original"], report["delivered"]
    table = Table("", "before", "after", title="digits, one thread, batch 1", title_justify="left")
    table.add_row("accuracy, test split", before.accuracy, after.accuracy)
    table.add_row("latency, median (95 %)", before.latency, after.latency)
    table.add_row("latency kept, measured", f"budget {BUDGET.limit:g}", f"{keep.value:.3f}  {_range(keep)}")
    predicted = report["ratio"].get("predicted")
    table.add_row("latency kept, predicted", "", "-" if predicted is None else f"{predicted:.3f}")
    table.add_row("MACs", *(f"{side['macs'] / 1e6:.1f} M" for side in (original, delivered)))
    table.add_row("parameters", *(f"{side['params']:,}" for side in (original, delivered)))
    table.add_row("file", *(f"{side.size_bytes / 1e6:.2f} MB" for side in (before, after)), end_section=True)
    for block in report["blocks"]:
        table.add_row(str(block["name"]), _block(block, 1), _block(block, 0))
    return table


def _range(interval: Interval) -> str:
    return f"({interval.low:.3f} .. {interval.high:.3f})"


def _block(block: dict[str, Any], side: int) -> str:
    """Describe the size of a block. Side 0 is the pruned block, side 1 is the original block."""
    parts = [f"{block[noun][side]} {noun}" for noun in ("heads", "neurons", "tokens") if block.get(noun)]
    return ", ".join(parts)


def problems_of(job: Job, keep: Interval, report: dict[str, Any]) -> list[str]:
    """Return the reasons why the demo fails, one sentence each. The list is empty if the demo succeeds."""
    found = []
    if keep.value > BUDGET.limit:
        found.append(f"Budget missed: {keep.value:.3f} {_range(keep)} of the latency, {BUDGET.limit:g} was asked for.")
    if job.guarantee != "measured":
        found.append(f"The job's guarantee is {job.guarantee!r}; on this machine it must be 'measured'.")
    parity = report.get("parity") or {}
    if parity.get("passed") is not True:
        found.append(f"Parity failed: the ONNX file disagrees with PyTorch ({parity}).")
    return found


if __name__ == "__main__":
    sys.exit(main())
