"""What a job leaves: the ONNX files with their parity, weights, program, plan, manifest, model card and report.

Everything is written in `work` first and moved into `artifacts` when it is whole.
"""

import hashlib
import importlib.metadata
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from latency.devices.devices import CPU
from latency.measuring.footprint import Footprint, footprint
from models.atomic_write import replacing
from models.errors import ParityFailure
from models.evaluation.metrics import same_answer
from models.evaluation.parity import (
    ACCURACY,
    SAME_ANSWERS,
    ParityReport,
    check_parity,
    check_quantised,
    enough_same,
    same_clear_answers,
)
from models.export.onnx_export import OnnxFile, compare_outputs, run_onnx
from models.export.onnx_store import bytes_of, copy_onnx
from models.export.torch_program import save_program
from models.loading.timm_target import to_timm
from models.networks.network import Network
from search.loop.trial import Trial
from service.core.data_folder import JobFiles
from service.jobs.job_request import JobRequest
from service.jobs.journal import JobResult, Journal
from service.pipeline.dynamic_tokens import deliver_dynamic
from service.pipeline.evaluation import Evaluation
from service.pipeline.pricing import DeviceSetting, Pricing
from service.pipeline.ranked import Ranked
from service.pipeline.verification import AXES, VERIFY, Evidence, Verdict, Verifier
from service.reports import report_text as story
from service.reports.html_report import write_html
from service.reports.model_card import model_card
from service.reports.patch_pictures import FILE as PATCHES
from service.reports.patch_pictures import IMAGES as PICTURES
from service.reports.patch_pictures import patches_of

MEASURED = "model.cpu.onnx"
"""The form that ONNX Runtime's CPU runs fastest. `model.onnx` is the same network in operators of ONNX alone."""
PARITY_IMAGES = 64
QUANTISED_IMAGES = 512
"""On which the answers of an 8-bit file are compared."""
DYNAMIC_IMAGES = 256
"""One by one: what a dynamic number of tokens is described by."""
PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "scikit-optimize", "numpy")


@dataclass(frozen=True)
class Delivery:
    """Everything that the stages before found out."""

    request: JobRequest
    ranked: Ranked
    pricing: Pricing
    verifier: Verifier
    name: str
    trial: Trial
    network: Network
    verdict: Verdict
    trials: tuple[Trial, ...]

    @property
    def evaluation(self) -> Evaluation:
        return self.ranked.evaluation

    @property
    def guarantee(self) -> str:
        """measured: every latency (and memory) was measured within its limit. predicted: a profile's upper end is within it.
        counted: only MACs and parameters were limited. none: delivered on request though a budget is not met."""
        if not self.verdict.met:
            return "none"
        places = [place for place in self.pricing.places if place is not None]
        if not places:
            return "measured" if any(key[0] == "memory" for key in self.pricing.size_keys) else "counted"
        return "measured" if all(p in self.pricing.measured_places for p in places) else "predicted"


def deliver_files(delivery: Delivery, files: JobFiles, journal: Journal) -> JobResult:
    """Writes all artefacts. Raises: ParityFailure when ONNX Runtime disagrees with PyTorch."""
    folder = files.work / "delivery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parity = _export(delivery, folder)
    dynamic = deliver_dynamic(
        delivery.network,
        delivery.pricing,
        delivery.evaluation.calibration.images[:DYNAMIC_IMAGES],
        delivery.evaluation.data.take("test", PARITY_IMAGES, 0).images,
        folder,
        delivery.verdict.over_images,
    )
    journal.check()
    journal.stage("reporting")
    report = _report(delivery, folder, parity, journal)
    if dynamic is not None:
        report["dynamic_tokens"] = dynamic
    _write_json(folder / "report.json", report)
    patches = None
    if delivery.evaluation.data.assessed:
        shown = delivery.evaluation.data.take("selection", PICTURES, 0)
        patches = patches_of(delivery.network, delivery.evaluation.network, shown)
    if patches is not None:
        _write_json(folder / PATCHES, patches)
    write_html(report, folder / "report.html", patches)
    (folder / "model_card.md").write_text(model_card(report))
    _write_json(folder / "manifest.json", _manifest(delivery, folder))
    for path in sorted(folder.iterdir()):
        with replacing(files.artifacts / path.name) as beside:
            shutil.move(path, beside)  # `work` may lie on another file system
    summary = {"rows": story.headline(report), "notes": story.notes(report), "guarantee": delivery.guarantee}
    summary |= {key: report[key] for key in ("original", "delivered", "ratio", "budgets", "parity")}
    return JobResult(delivery.guarantee, summary, delivery.trial.number)  # type: ignore[arg-type]


def _export(delivery: Delivery, folder: Path) -> ParityReport:
    network, batch = delivery.network, delivery.pricing.report_place[1].batch
    # the very files that are measured
    copy_onnx(delivery.verifier.file(network, delivery.name, batch), folder / MEASURED)
    copy_onnx(delivery.verifier.file(delivery.evaluation.network, "original", batch), folder / "original.onnx")
    for other in {place[1].batch for place in delivery.pricing.measured_places} - {batch}:
        copy_onnx(delivery.verifier.file(network, delivery.name, other), folder / f"model.cpu.b{other}.onnx")
    network.export(folder / "model.onnx", batch)
    network.export(folder / "model.dynamic.onnx", None)
    save_file({k: v.contiguous() for k, v in network.module.state_dict().items()}, folder / "pruned.safetensors")
    if delivery.request.target is not None:
        loaded = to_timm(network, delivery.evaluation.network, delivery.request.target)
        save_file({k: v.contiguous() for k, v in loaded.state_dict().items()}, folder / "timm.safetensors")
    save_program(network.module, network.structure.image, folder / "program.pt2")
    assert network.plan is not None
    _write_json(folder / "plan.json", network.plan.to_json())
    parity = _parity(delivery, folder, batch)
    if not parity.passed:
        raise ParityFailure(
            f"ONNX Runtime disagrees with PyTorch by {parity.free.max_relative:.2e} (allowed: 1e-3)"
            f"{_disagreement(parity)}; nothing was delivered. This is a defect of vitfit or of the runtime: please report it.",
            parity=parity.to_json(),
        )
    return parity


def _parity(delivery: Delivery, folder: Path, batch: int) -> ParityReport:
    """Of the measured file; the others must agree with it. Raises: ParityFailure when they do not."""
    network, data = delivery.network, delivery.evaluation.data
    images = data.take("test", PARITY_IMAGES, 0).images
    if network.rounding is not None:
        parity = check_quantised(network, folder / MEASURED, batch, data.take("test", QUANTISED_IMAGES, 0))
    else:
        parity = check_parity(network, folder / MEASURED, batch, images)
    answers = run_onnx(folder / MEASURED, images, batch)
    for name, many in (("model.onnx", batch), ("model.dynamic.onnx", 8 if network.rounding is None else batch)):
        others = run_onnx(folder / name, images, many)
        if not _agree(network, images, answers, others) and not parity.flipped_sets:
            raise ParityFailure(
                f"{name} disagrees with {MEASURED} on {len(images)} images; nothing was delivered. This is a defect of vitfit or "
                "of the runtime: please report it.",
                parity=compare_outputs(answers, others).to_json(),
            )
    return parity


def _agree(network: Network, images: Tensor, answers: Tensor, others: Tensor) -> bool:
    """Two files of one network."""
    if network.rounding is None:
        return compare_outputs(answers, others).passed
    fp32 = network.exact().outputs(images)
    clear, same = same_clear_answers(answers, fp32, others, network.structure.classes)
    return enough_same(same, clear)


def _disagreement(parity: ParityReport) -> str:
    found = parity.quantised
    if found is None:
        return ""
    accuracies = f"accuracy {found.accuracy_file} and {found.accuracy_emulated}"
    return (
        f", or the quantised file with its emulation: {found.same_answers:.3f} of {found.clear} clear answers are the same "
        f"(at least {SAME_ANSWERS}; with given tokens {found.forced_same_answers}), {accuracies} (at most {ACCURACY} apart)"
    )


def _report(delivery: Delivery, folder: Path, parity: ParityReport, journal: Journal) -> dict[str, Any]:
    original, network = delivery.evaluation.network, delivery.network
    dense, pruned, labels = _test_outputs(delivery, folder / MEASURED, journal)
    before, after = (delivery.evaluation.correct(outputs, labels) for outputs in (dense, pruned))
    first = _evidence(delivery)
    journal.check()
    axes = _axes(delivery)
    place = delivery.pricing.report_place
    predicted = delivery.pricing.predicted_keep(place, network.structure)
    fall = 1 - network.structure.macs / original.structure.macs
    assert network.plan is not None
    return {
        "version": _version("vitfit-server"),
        "model": original.structure.name,
        "method": delivery.request.method,
        "guarantee": delivery.guarantee,
        "setting": f"{place[0]}, {place[1]}",
        "machine": first.original.machine,
        "original": story.side(
            original.structure,
            bytes_of(folder / "original.onnx"),
            before,
            len(dense),
            first.original,
            _footprint(folder / "original.onnx", place),
        ),
        "delivered": story.side(
            network.structure,
            bytes_of(folder / MEASURED),
            after,
            len(dense),
            first.candidate,
            _footprint(folder / MEASURED, place),
        ),
        "agreement": {
            "score": delivery.evaluation.agreement(dense, pruned),
            "same_answer": same_answer(dense, pruned, original.structure.classes),
        },
        "ratio": {
            "measured": first.ratio.value,
            "low": first.ratio.low,
            "high": first.ratio.high,
            "predicted": _first_prediction(delivery),
            "predicted_after_corrections": predicted,
        },
        "budgets": _budgets(delivery),
        "parity": {
            **parity.free.to_json(),
            "passed": parity.passed,
            "flipped_sets": parity.flipped_sets,
            "forced": parity.forced.to_json() if parity.forced else None,
            "quantised": parity.quantised.to_json() if parity.quantised else None,
        },
        "precision": story.precision(network.plan, network.quantiser.weight_bits),
        "blocks": story.removed(original.structure, network.plan),
        "axes": axes,
        "share_of_macs_fall": (1 - first.ratio.value) / fall if fall > 0.005 and network.rounding is None else None,
        "trials": [trial.to_json() for trial in delivery.trials],
        "delivered_trial": delivery.trial.number,
        "samples_ms": {"original": first.original.samples_ms, "delivered": first.candidate.samples_ms},
        "warnings": list(delivery.evaluation.data.warnings) + _remarks(delivery),
        "request": delivery.request.model_dump(mode="json"),
    }


def _test_outputs(delivery: Delivery, file: Path, journal: Journal) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits of the original and of the delivered ONNX file on the whole test split, and the labels."""
    batch = delivery.pricing.report_place[1].batch
    dense, pruned, labels, delivered = [], [], [], OnnxFile(file)
    for chunk in delivery.evaluation.data.batches("test", batch * max(1, 64 // batch)):
        journal.check()
        dense.append(delivery.evaluation.network.outputs(chunk.images))
        pruned.append(delivered.outputs(chunk.images, batch))
        if chunk.labels is not None:
            labels.append(chunk.labels)
    return torch.cat(dense), torch.cat(pruned), torch.cat(labels) if labels else None


def _evidence(delivery: Delivery) -> Evidence:
    """The measurement that the report shows: the verification's, or, where no latency was limited, one made now."""
    if delivery.verdict.evidence:
        return delivery.verdict.evidence[0]
    networks = [(delivery.name, delivery.network)]
    return delivery.verifier.measure(networks, delivery.pricing.report_place, VERIFY)[0]


def _footprint(file: Path, place: DeviceSetting) -> Footprint | None:
    """Of this machine only: an agent measures nothing but latencies."""
    return footprint(file, place[1]) if place[0] == CPU else None


def _axes(delivery: Delivery) -> list[dict[str, Any]]:
    """Each axis pruned alone, all measured in one run."""
    original, plan = delivery.evaluation.network, delivery.network.plan
    assert plan is not None
    axes = story.axes_of(plan, original.structure)
    if not axes:
        return []
    networks = [
        (f"{delivery.name}-{axis}", original.pruned(plan.only(axis, original.structure), None)) for axis in axes
    ]
    found = delivery.verifier.measure(networks, delivery.pricing.report_place, AXES)
    return [
        story.axis_share(axis, original.structure, network.structure, evidence.ratio.value)
        for axis, (_, network), evidence in zip(axes, networks, found, strict=True)
    ]


def _first_prediction(delivery: Delivery) -> float | None:
    """What was predicted when the trial was proposed, before it was measured."""
    pricing = delivery.pricing
    for budget, place in zip(pricing.budgets.items, pricing.places, strict=True):
        if place != pricing.report_place:
            continue
        if budget.metric == "latency_keep":
            return delivery.trial.costs.get(budget.label)
        table = pricing.table(place)
        return delivery.trial.costs[budget.label] / table.original_ms if table else None
    return None


def _budgets(delivery: Delivery) -> list[dict[str, Any]]:
    rows = []
    for budget in delivery.pricing.budgets.items:
        share = delivery.verdict.shares[budget.label]
        reached = budget.describe(share * budget.limit)
        met = "met" if share <= 1 else "NOT met"
        rows.append(
            {
                **budget.to_json(),
                "label": budget.label,
                "share": share,
                "met": share <= 1,
                "text": f"at most {budget.describe(budget.limit)}",
                "outcome": f"{met}, upper end {reached}, {100 * share:.1f} % of the budget used",
            }
        )
    return rows


def _remarks(delivery: Delivery) -> list[str]:
    remarks = []
    if delivery.network.structure.macs == delivery.evaluation.network.structure.macs:
        meets = (
            "Quantised, the original meets the budgets"
            if delivery.network.rounding is not None
            else "The original meets the budgets"
        )
        remarks.append(f"{meets}: it is delivered unpruned.")
        if delivery.ranked.was_trained:
            remarks.append("Its weights are those that the training of its gates left.")
    if delivery.request.finetune.epochs and not delivery.name.endswith("-finetuned"):
        remarks.append("Fine-tuning made it worse on the selection split: the network before it is delivered.")
    if not delivery.evaluation.classes:
        remarks.append("The model has no classifier: scores are agreement of its features with the original's.")
    elif delivery.evaluation.data.assessed and delivery.evaluation.selection.labels is None:
        remarks.append("No labels: scores are agreement with the original; accuracy is not assessed.")
    return remarks


def _manifest(delivery: Delivery, folder: Path) -> dict[str, Any]:
    """What a reader needs to trust and repeat the result."""
    return {
        "files": {path.name: _digest(path) for path in sorted(folder.iterdir())},
        "seed": delivery.request.seed,
        "versions": {"vitfit-server": _version("vitfit-server")} | {name: _version(name) for name in PACKAGES},
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


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
