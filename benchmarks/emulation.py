"""Claim: with fake quantisation, int8 and fp16 policies score within 0.3 points of their exported files.

    python -m benchmarks.emulation --scenes scenes.npz        digits and the cluttered task, 10 minutes

`python -m benchmarks.scenes` writes the file for --scenes.

The script makes several networks of each model: some unpruned, some pruned along random directions in the space of
method `joint`. All of them get recovery. Each network has all layers in int8, or about two thirds of its layers in
int8, or everything in fp16. The script compares two accuracies on the full test split: that of fake quantisation in
PyTorch, and that of the quantised file in ONNX Runtime. One image is 0.2 points on the digits (500 images), and 0.02
points on the cluttered task (5,000 images).
"""

import argparse
import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.comparison.bench import Case
from benchmarks.machine import machine
from models.evaluation.metrics import correct
from models.export.onnx_export import OnnxFile
from models.networks.network import Network
from models.structure import BlockPlan, Plan
from service.jobs.job_request import JobRequest
from service.pipeline.evaluation import Evaluation
from service.pipeline.ranked import Ranked, rank_network

HERE = Path(__file__).parent
STEPS = (0.0, 0.3, 0.6, 0.8)
"""How far the networks are pruned along a random direction. 0 means unpruned, and 2 would be the smallest network of
the space."""


@dataclass(frozen=True)
class Row:
    model: str
    macs_keep: float
    int8: float
    """Share of the layers in int8, in [0, 1]. -1 means that everything is in fp16."""
    fp32: int
    """Number of correct answers before quantisation."""
    emulated: int
    file: int
    same_answers: int
    images: int

    @property
    def points(self) -> float:
        return 100 * abs(self.emulated - self.file) / self.images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--scenes", type=Path, help="what python -m benchmarks.scenes writes; left out: the digits alone"
    )
    parser.add_argument("--output", type=Path, default=Path("build/emulation.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [("digits", HERE / "digits" / "digits.npz")]
    tasks += [("clutter", options.scenes)] if options.scenes else []
    rows = [row for name, data in tasks for row in compare(name, data)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"rows": [vars(row) for row in rows], **machine()}, indent=1))
    print(table(rows))
    print(", ".join(machine().values()))


def compare(name: str, data: Path) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        case = Case(HERE / name, data, 0.5, 0, Path(scratch))
        request = JobRequest.model_validate(case.request().model_dump() | {"precisions": ("fp32", "int8")})
        files = case.files()
        evaluation = Evaluation.open(request, files)
        ranked = rank_network(evaluation, request, files.work)
        space, draw = ranked.space, np.random.default_rng(0)
        for step in STEPS:
            for level in (1.0, 0.6):
                policy = space.along([*draw.random(len(space.dimensions) - 1).tolist(), level], step)
                plan = space.plan(policy)
                rows.append(_row(name, ranked, plan, policy.int8, file=files.work / "file.onnx"))
                print(rows[-1], flush=True)
            half = dataclasses.replace(plan, precision="fp16", blocks=tuple(map(_whole, plan.blocks)))
            rows.append(_row(name, ranked, half, -1, file=files.work / "file.onnx"))
            print(rows[-1], flush=True)
    return rows


def _whole(block: BlockPlan) -> BlockPlan:
    return dataclasses.replace(block, exact=())


def _row(name: str, ranked: Ranked, plan: Plan, int8: float, *, file: Path) -> Row:
    evaluation = ranked.evaluation
    network = ranked.final(plan, True)
    network.export(file, 1, "cpu")
    keep = network.structure.macs / evaluation.network.structure.macs
    return Row(name, keep, int8, *_answers(evaluation, network, file))


def _answers(evaluation: Evaluation, network: Network, file: Path) -> tuple[int, int, int, int, int]:
    opened, fp32, emulated, quantised, same, images = OnnxFile(file), 0, 0, 0, 0, 0
    for chunk in evaluation.data.batches("test", 500):
        assert chunk.labels is not None
        mine, files = network.outputs(chunk.images), opened.outputs(chunk.images, 1)
        fp32 += correct(network.exact().outputs(chunk.images), chunk.labels)
        emulated += correct(mine, chunk.labels)
        quantised += correct(files, chunk.labels)
        same += correct(files, mine.argmax(1))
        images += len(mine)
    return fp32, emulated, quantised, same, images


def _precision(row: Row) -> str:
    return "fp16" if row.int8 < 0 else f"int8, {100 * row.int8:.0f} % of the layers"


def table(rows: list[Row]) -> str:
    lines = [
        "| model | MACs kept | precision | right in fp32 | emulated | file | points apart | same answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.model} | {r.macs_keep:.2f} | {_precision(r)} | {r.fp32}/{r.images} | {r.emulated} | {r.file} | "
        f"{r.points:.2f} | {100 * r.same_answers / r.images:.2f} % |"
        for r in rows
    ]
    worst = max(row.points for row in rows)
    return "\n".join([*lines, "", f"Largest difference of accuracy: {worst:.2f} points."])


if __name__ == "__main__":
    main()
