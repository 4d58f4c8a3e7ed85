"""Write the artifacts of a job: the ONNX files, weights, program, plan, manifest, model card and report.

All files are first written to a folder in `work`. The finished files are then moved to `artifacts`.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from vitfit.report import JobResult

from models.atomic_write import replacing
from service.core.data_folder import JobFiles
from service.jobs.journal import Journal
from service.pipeline.delivered_files import PARITY_IMAGES, export_files, write_json
from service.pipeline.delivery import Delivery
from service.pipeline.dynamic_tokens import deliver_dynamic
from service.pipeline.job_report import build_report, short_form, version
from service.reports.html_report import write_html
from service.reports.model_card import model_card
from service.reports.patch_pictures import FILE as PATCHES
from service.reports.patch_pictures import IMAGES as PICTURES
from service.reports.patch_pictures import patches_of

DYNAMIC_IMAGES = 256
"""Number of calibration images over which the numbers of tokens of the dynamic form are described."""
PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "scikit-optimize", "numpy")


def deliver_files(delivery: Delivery, files: JobFiles, journal: Journal) -> JobResult:
    """Write all artifacts, and return the result of the job.

    Raises: ParityFailure when ONNX Runtime disagrees with PyTorch.
    """
    folder = files.work / "delivery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    evaluation = delivery.evaluation
    parity = export_files(delivery, folder)
    dynamic = deliver_dynamic(
        delivery.network,
        delivery.pricing,
        folder,
        images=evaluation.calibration.images[:DYNAMIC_IMAGES],
        unseen=evaluation.data.take("test", PARITY_IMAGES, 0).images,
        evidence=delivery.verdict.over_images,
    )
    journal.check()
    journal.stage("reporting")
    report = build_report(delivery, folder, parity, dynamic, journal=journal)
    write_json(folder / "report.json", report.to_json())
    patches = None
    if evaluation.data.assessed:
        patches = patches_of(delivery.network, evaluation.network, evaluation.data.take("selection", PICTURES, 0))
    if patches is not None:
        write_json(folder / PATCHES, patches)
    write_html(report, folder / "report.html", patches)
    (folder / "model_card.md").write_text(model_card(report))
    write_json(folder / "manifest.json", _manifest(delivery, folder))
    for path in sorted(folder.iterdir()):
        with replacing(files.artifacts / path.name) as beside:
            shutil.move(path, beside)  # not os.replace, because `work` may be on another file system
    return short_form(report)


def _manifest(delivery: Delivery, folder: Path) -> dict[str, Any]:
    """Return digests, versions, seed and setting. A reader can check and repeat the result with them."""
    return {
        "files": {path.name: _digest(path) for path in sorted(folder.iterdir())},
        "seed": delivery.request.seed,
        "versions": {name: version(name) for name in ("vitfit-server", *PACKAGES)},
        "threads": torch.get_num_threads(),
        "setting": delivery.pricing.report_place[1].to_json(),
        "preprocessing": delivery.evaluation.network.preprocessing.to_json(),
        "original_structure": delivery.evaluation.network.structure.key,
        "structure": delivery.network.structure.key,
        "guarantee": delivery.guarantee,
    }


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
