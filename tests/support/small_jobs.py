"""Small models and data in the folders of real jobs, for tests of the pipeline in this process."""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vitfit.report import JobResult

import service.pipeline.delivery
import service.pipeline.job_report
import service.pipeline.profiling
import service.pipeline.verification
from latency.measuring.meter import Effort
from latency.prediction.probes import probe_plans
from models.loading.load_model import open_model
from models.networks.torch_network import TorchNetwork
from models.rotation.bases import Bases
from models.statistics.statistics import from_tensors
from models.structure import Plan
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.jobs.journal import MemoryJournal
from service.pipeline.pipeline import run
from tests.support.networks import small_network

DIGITS = Path(__file__).parents[2] / "benchmarks" / "digits"
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 5}
SPLITS = ("calibration",) * 48 + ("selection",) * 32 + ("test",) * 40
FEW_PROBES = 6
BRIEF = Effort(seconds=0.2, width=1.0, processes=1, rounds=3)
ARTIFACTS = {
    "model.onnx",
    "model.cpu.onnx",
    "model.dynamic.onnx",
    "original.onnx",
    "report.html",
    "report.json",
    "plan.json",
    "pruned.safetensors",
    "program.pt2",
    "model_card.md",
    "manifest.json",
}


def expected_artifacts(plan: dict[str, Any]) -> set[str]:
    """Return the artifacts of a job that used images and delivered this plan."""
    return ARTIFACTS | ({"patches.json"} if any(block["tokens"] for block in plan["blocks"]) else set())


@contextmanager
def briefly(verify: Effort = BRIEF) -> Iterator[None]:
    """Shorten measurements in every file that has the constants by name, and use one thread.

    The networks are small, so several threads would not help.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for module in (service.pipeline.verification, service.pipeline.delivery):
            patch.setattr(module, "VERIFY", verify)
        patch.setattr(service.pipeline.profiling, "PROFILE", BRIEF)
        patch.setattr(service.pipeline.job_report, "AXES", BRIEF)
        patch.setattr(service.pipeline.profiling, "probe_plans", functools.partial(probe_plans, count=FEW_PROBES))
        yield
    torch.set_num_threads(threads)


def model_folder(folder: Path, change: Callable[[TorchNetwork], None] | None = None, **options: Any) -> Path:
    """Write a model.json with weights. `change` may edit the network before it is stored."""
    network = small_network(**{**OPTIONS, **options})
    if change is not None:
        with torch.no_grad():
            change(network)
    folder.mkdir(parents=True)
    document = {"name": "vit_tiny_patch16_224", "options": {**OPTIONS, **options}, "pretrained": False}
    (folder / "model.json").write_text(json.dumps({**document, "preprocessing": None, "classes": None}))
    save_file(
        {name: value.contiguous() for name, value in network.module.state_dict().items()},
        folder / "weights.safetensors",
    )
    return folder


def random_images(count: int = len(SPLITS), size: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


def data_folder(folder: Path, model: Path | None, **arrays: Any) -> Path:
    """Write an npz file of noise in given splits.

    model: its answers become the labels. With None, there are no labels.
    """
    images = random_images()
    content: dict[str, Any] = {"images": images.numpy(), "split": np.array(SPLITS)}
    if model is not None:
        content["labels"] = open_model(model).outputs(images).argmax(1).numpy()
    return store_npz(folder, **{**content, **arrays})


def store_npz(folder: Path, **arrays: Any) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "data.npz", **arrays)
    (folder / "dataset.json").write_text('{"source": "npz", "path": null, "filename": "data.npz"}')
    return folder


def digits(folder: Path) -> tuple[Path, Path]:
    """Return the folders of the model and of the data of the digits benchmark."""
    data = folder / "digits-data"
    data.mkdir(parents=True)
    (data / "data.npz").symlink_to(DIGITS / "digits.npz")
    (data / "dataset.json").write_text('{"source": "npz", "path": null, "filename": "digits.npz"}')
    return DIGITS, data


def budget(metric: str, limit: float, device: str = "cpu", **setting: int) -> dict[str, Any]:
    return {"metric": metric, "limit": limit, "device": device, "setting": setting}


@dataclass
class Ran:
    """A job that succeeded, with all the files that it left."""

    request: JobRequest
    files: JobFiles
    journal: MemoryJournal
    result: JobResult

    @property
    def report(self) -> dict[str, Any]:
        return self.json("report.json")

    def json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path(name).read_text())
        return found

    def path(self, name: str) -> Path:
        return self.files.artifacts / name


@dataclass
class Workshop:
    """A helper that runs jobs on one model and one data set.

    Each job has its own folders. All jobs share the latency tables.
    """

    root: Path
    model: Path
    dataset: Path | None
    jobs: int = 0

    def files(self) -> JobFiles:
        self.jobs += 1
        folder = self.root / f"job{self.jobs}"
        return JobFiles(self.model, self.dataset, folder / "artifacts", folder / "work", self.root / "tables")

    def run(
        self,
        *budgets: dict[str, Any],
        journal: MemoryJournal | None = None,
        files: JobFiles | None = None,
        deliver: int | None = None,
        cluster: str | None = None,
        **options: Any,
    ) -> Ran:
        request = job_request(*budgets, dataset=self.dataset is not None, **options)
        journal, files = journal or MemoryJournal(), files or self.files()
        return Ran(request, files, journal, run(request, files, journal, deliver, cluster=cluster))


def job_request(*budgets: dict[str, Any], dataset: bool = True, **options: Any) -> JobRequest:
    document = {"model": "m", "dataset": "d" if dataset else None, "budgets": list(budgets), "trials": 4, **options}
    return JobRequest.model_validate(document)


def delivered_network(ran: Ran) -> TorchNetwork:
    """Return the original, pruned by the delivered plan, without recovery."""
    network = open_model(ran.files.model)
    assert isinstance(network, TorchNetwork)
    plan = Plan.from_json(ran.json("plan.json"))
    if plan.rotated:
        network = network.rotated(from_tensors(Bases, load_file(ran.files.work / "bases.safetensors")))
    return network.pruned(plan, None)
