"""Command line of the package. The package's docstring describes it."""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import benchmarks.published as package
from benchmarks.machine import machine
from benchmarks.published.cases import CASES, Case
from benchmarks.published.pictures import class_names, noise, view
from models.errors import VitfitError
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.jobs.journal import MemoryJournal
from service.pipeline.pipeline import run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet", type=Path, help="folder with train/<wnid>/ and val/<wnid>/; none: noise")
    parser.add_argument("--random", action="store_true", help="random weights although there are real pictures")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="default: all, but large ones need --imagenet")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--images", type=int, help="at most so many to train on, and to test on")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--output", type=Path, default=Path("build/published"))
    options = parser.parse_args(arguments)
    all_rows = [case.name for case in CASES if options.imagenet is not None or not case.large]
    options.rows = options.rows or all_rows
    unknown = sorted(set(options.rows) - {case.name for case in CASES})
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(case.name for case in CASES)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = options.imagenet or noise(Path(scratch) / "imagenet")
        pictures = view(root, Path(scratch) / "view", options.images, options.images)
        pretrained = options.imagenet is not None and not options.random
        for case in CASES:
            if case.name in options.rows:
                one(case, pictures, root, pretrained, options=options)
    rows = [row for case in CASES if (row := _stored(options.output, case)) is not None]
    text = table(rows)
    (options.output / "table.json").write_text(json.dumps({"rows": rows, **machine()}, indent=1))
    (options.output / "table.md").write_text(text)
    print(text)


def request_of(case: Case, trials: int, epochs: int) -> JobRequest:
    """Return the request of a case. A method that needs training gets at least one epoch."""
    return JobRequest.model_validate(
        {
            "model": "model",
            "dataset": "data",
            "method": case.method,
            "budgets": case.budgets,
            "trials": trials,
            "gates": {"epochs": max(1, epochs // 2) if case.method == "vtp" else 0, "batch": 16},
            "finetune": {"epochs": max(epochs, int(case.method == "spvit")), "batch": 16},
            **case.request,
        }
    )


def one(case: Case, pictures: Path, root: Path, pretrained: bool, *, options: argparse.Namespace) -> None:
    """Run one row, unless its file exists already."""
    if _stored(options.output, case) is not None:
        return
    began = time.perf_counter()
    folder = options.output / _stem(case)
    row: dict[str, Any] = {"row": case.name, "method": case.method, "model": case.model, "published": case.published}
    row |= {"tuned": case.tuned, "source": case.source, "pretrained": pretrained}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        model = {"name": case.model, "pretrained": pretrained, "classes": class_names()}
        data = {"source": "path", "path": str(pictures), "filename": pictures.name}
        for name, file, document in (("model", "model.json", model), ("data", "dataset.json", data)):
            (work / name).mkdir()
            (work / name / file).write_text(json.dumps(document))
        files = JobFiles(work / "model", work / "data", folder, work / "work", work / "tables")
        request = request_of(case, options.trials, options.epochs)
        try:
            run(request, files, MemoryJournal(), allowed=(pictures.resolve(), root.resolve()))
        except VitfitError as error:
            row["error"] = error.detail
        else:
            row |= _figures(folder)
    row["seconds"] = round(time.perf_counter() - began, 1)
    _place(options.output, case).write_text(json.dumps(row, indent=1))
    print(case.name, row.get("error") or f"{row['macs'] / 1e9:.3f} G, {row['params'] / 1e6:.2f} M", flush=True)


def _figures(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    delivered, parity = report["delivered"], report["parity"]
    return {
        "macs": delivered["macs"],
        "params": delivered["params"],
        "accuracy": delivered["accuracy"],
        "parity": parity["max_relative"],
        "passed": parity["passed"],
    }


def _stem(case: Case) -> str:
    return "".join(c if c.isalnum() else "-" for c in case.name.lower())


def _place(output: Path, case: Case) -> Path:
    return output / f"{_stem(case)}.json"


def _stored(output: Path, case: Case) -> dict[str, Any] | None:
    place = _place(output, case)
    return json.loads(place.read_text()) if place.exists() else None


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of vitfit's results beside the published results."""
    lines = [
        "| row | G MACs (published) | M parameters (published) | top-1, here (published) | "
        "ONNX Runtime against PyTorch, relative |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['row']} | {row['error']} | | | |")
            continue
        known = row["published"]
        top1 = f"{100 * row['accuracy']:.2f} %" if row["pretrained"] and row["accuracy"] is not None else "not assessed"
        said = f"{known['top1']} %{', fine-tuned' if row['tuned'] else ''}" if "top1" in known else "none"
        lines.append(
            f"| {row['row']} | {row['macs'] / 1e9:.3f} ({known.get('macs', '-')}) | "
            f"{row['params'] / 1e6:.2f} ({known.get('params', '-')}) | {top1} ({said}) | "
            f"{row['parity']:.1e}{'' if row['passed'] else ', FAILED'} |"
        )
    return "\n".join([*lines, "", ", ".join(machine().values())])


if __name__ == "__main__":
    main()
