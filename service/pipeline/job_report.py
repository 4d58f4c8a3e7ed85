"""Build the report of a job: scores on the test split, sizes, latencies, budgets, and the effect of each axis."""

import importlib.metadata
from pathlib import Path

import torch
from torch import Tensor
from vitfit.report import (
    Agreement,
    AxisShare,
    BudgetOutcome,
    DynamicTokens,
    Footprint,
    JobResult,
    LatencyRatio,
    ParityOutcome,
    Report,
    SamplesMs,
)
from vitfit.trial import Trial

from latency.devices.devices import CPU
from latency.measuring.footprint import footprint
from models.evaluation.metrics import same_answer
from models.evaluation.parity import ParityReport
from models.export.onnx_export import OnnxFile
from models.export.onnx_store import bytes_of
from models.networks.network import Network
from service.jobs.journal import Journal
from service.pipeline.delivered_files import MEASURED, ORIGINAL
from service.pipeline.delivery import Delivery
from service.pipeline.pricing import DeviceSetting
from service.pipeline.verification import AXES
from service.reports import report_facts as facts
from service.reports import report_text


def build_report(
    delivery: Delivery, folder: Path, parity: ParityReport, dynamic: DynamicTokens | None, *, journal: Journal
) -> Report:
    """Score the files in `folder` on the test split, measure each axis alone, and return the report."""
    original, network = delivery.evaluation.network, delivery.network
    dense, pruned, labels = _test_outputs(delivery, folder / MEASURED, journal)
    before, after = (delivery.evaluation.correct(outputs, labels) for outputs in (dense, pruned))
    evidence = delivery.evidence()
    journal.check()
    axes = _axes(delivery)
    place = delivery.pricing.report_place
    return Report(
        version=version("vitfit-server"),
        model=original.structure.name,
        method=delivery.request.method,
        guarantee=delivery.guarantee,
        setting=f"{place[0]}, {place[1]}",
        machine=evidence.original.machine,
        original=facts.side(
            original.structure,
            file_bytes=bytes_of(folder / ORIGINAL),
            correct=before,
            images=len(dense),
            latency=evidence.original,
            footprint=_footprint(folder / ORIGINAL, place),
        ),
        delivered=facts.side(
            network.structure,
            file_bytes=bytes_of(folder / MEASURED),
            correct=after,
            images=len(dense),
            latency=evidence.candidate,
            footprint=_footprint(folder / MEASURED, place),
        ),
        agreement=Agreement(
            score=delivery.evaluation.agreement(dense, pruned),
            same_answer=same_answer(dense, pruned, original.structure.classes),
        ),
        ratio=LatencyRatio(
            measured=evidence.ratio.value,
            low=evidence.ratio.low,
            high=evidence.ratio.high,
            predicted=_first_prediction(delivery),
            predicted_after_corrections=delivery.pricing.predicted_keep(place, network.structure),
        ),
        budgets=_budgets(delivery),
        parity=_parity_outcome(parity),
        precision=facts.precision(delivery.plan, network.quantiser.weight_bits),
        blocks=facts.block_sizes(delivery.ranked.source.structure, delivery.plan),
        axes=axes,
        share_of_macs_fall=_share_of_macs_fall(delivery, evidence.ratio.value),
        trials=tuple(Trial.from_json(trial.to_json()) for trial in delivery.trials),
        delivered_trial=delivery.trial.number,
        samples_ms=SamplesMs(original=evidence.original.samples_ms, delivered=evidence.candidate.samples_ms),
        warnings=(*original.assumptions, *delivery.evaluation.data.warnings, *_remarks(delivery)),
        request=delivery.request.model_dump(mode="json"),
        dynamic_tokens=dynamic,
    )


def short_form(report: Report) -> JobResult:
    """Return the result that `GET /v1/jobs/ID` shows: the summary table, its notes, and the most important records."""
    return JobResult(
        rows=tuple(report_text.headline(report)),
        notes=tuple(report_text.notes(report)),
        guarantee=report.guarantee,
        original=report.original,
        delivered=report.delivered,
        ratio=report.ratio,
        budgets=report.budgets,
        parity=report.parity,
        delivered_trial=report.delivered_trial,
    )


def version(package: str) -> str:
    """Return the installed version of a package."""
    return importlib.metadata.version(package)


def _test_outputs(delivery: Delivery, file: Path, journal: Journal) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the outputs of the original and of the delivered ONNX file on the whole test split, and the labels."""
    batch = delivery.pricing.report_place[1].batch
    dense, pruned, labels, delivered = [], [], [], OnnxFile(file)
    for chunk in delivery.evaluation.data.batches("test", batch * max(1, 64 // batch)):
        journal.check()
        dense.append(delivery.evaluation.network.outputs(chunk.images))
        pruned.append(delivered.outputs(chunk.images, batch))
        if chunk.labels is not None:
            labels.append(chunk.labels)
    return torch.cat(dense), torch.cat(pruned), torch.cat(labels) if labels else None


def _footprint(file: Path, place: DeviceSetting) -> Footprint | None:
    """Return the footprint on this machine's CPU; None on another device, because only latency is measured there."""
    return footprint(file, place[1]) if place[0] == CPU else None


def _axes(delivery: Delivery) -> tuple[AxisShare, ...]:
    """Prune each axis alone, and measure the resulting networks in one run."""
    original, plan = delivery.ranked.source, delivery.plan
    axes = facts.axes_of(plan, original.structure)
    if not axes:
        return ()
    networks = [
        (f"{delivery.name}-{axis}", original.pruned(plan.only(axis, original.structure), None)) for axis in axes
    ]
    found = delivery.verifier.measure(networks, delivery.pricing.report_place, AXES)
    return tuple(
        facts.axis_share(axis, original.structure, network.structure, evidence.ratio.value)
        for axis, (_, network), evidence in zip(axes, networks, found, strict=True)
    )


def _share_of_macs_fall(delivery: Delivery, latency_keep: float) -> float | None:
    fall = 1 - delivery.network.structure.macs / delivery.evaluation.network.structure.macs
    return (1 - latency_keep) / fall if fall > 0.005 and delivery.network.rounding is None else None


def _first_prediction(delivery: Delivery) -> float | None:
    """Return the latency ratio that was predicted before the trial was measured; None if nothing was predicted."""
    pricing = delivery.pricing
    for budget, place in zip(pricing.budgets.items, pricing.places, strict=True):
        if place != pricing.report_place:
            continue
        if budget.metric == "latency_keep":
            return delivery.trial.costs.get(budget.label)
        table = pricing.table(place)
        return delivery.trial.costs[budget.label] / table.original_ms if table else None
    return None


def _budgets(delivery: Delivery) -> tuple[BudgetOutcome, ...]:
    rows = []
    for budget in delivery.pricing.budgets.items:
        share = delivery.verdict.shares[budget.label]
        met, reached = "met" if share <= 1 else "NOT met", budget.describe(share * budget.limit)
        rows.append(
            BudgetOutcome(
                **budget.to_json(),
                label=budget.label,
                share=share,
                met=share <= 1,
                text=f"at most {budget.describe(budget.limit)}",
                outcome=f"{met}, upper end {reached}, {100 * share:.1f} % of the budget used",
            )
        )
    return tuple(rows)


def _parity_outcome(parity: ParityReport) -> ParityOutcome:
    return ParityOutcome.from_json(
        {
            **parity.free.to_json(),
            "passed": parity.passed,
            "flipped_sets": parity.flipped_sets,
            "forced": parity.forced.to_json() if parity.forced else None,
            "quantised": parity.quantised.to_json() if parity.quantised else None,
        }
    )


def rotation_remarks(network: Network) -> list[str]:
    """Return what rotated bases leave as it is in a network: whole axes, and the widths of some stages."""
    remarks, left, fixed = [], network.not_rotated, network.fixed_stages
    if left:
        names = {"qk": "q/k dims", "v": "v dims", "embed": "embedding dims"}
        reasons = "; ".join(f"{names[axis]}: {reason}" for axis, reason in left.items())
        remarks.append(f"These axes are not in rotated bases ({reasons}).")
    if fixed and "embed" not in left:
        reasons = "; ".join(f"{stage}: {reason}" for stage, reason in fixed.items())
        remarks.append(f"The width of these stages is fixed ({reasons}).")
    return remarks


def _remarks(delivery: Delivery) -> list[str]:
    remarks = []
    if delivery.network.structure.macs == delivery.evaluation.network.structure.macs:
        original = "The quantised original" if delivery.network.rounding is not None else "The original"
        remarks.append(f"{original} meets the budgets, so it is delivered unpruned.")
        if delivery.ranked.was_trained:
            remarks.append("It has the weights after the training of its gates.")
    if delivery.ranked.source.rotation is not None:
        remarks += rotation_remarks(delivery.evaluation.network)
    if delivery.request.heal.steps and "-healed" not in delivery.name:
        remarks.append(
            "Healing did not bring the network nearer to the original on the selection split, so the network before "
            "healing is delivered."
        )
    if delivery.request.finetune.epochs and not delivery.name.endswith("-finetuned"):
        remarks.append(
            "Fine-tuning made the network worse on the selection split, so the network before fine-tuning is delivered."
        )
    if not delivery.evaluation.classes:
        remarks.append(
            "The model has no classifier. The scores show how well its features agree with those of the original."
        )
    elif delivery.evaluation.data.assessed and delivery.evaluation.selection.labels is None:
        remarks.append(
            "The data set has no labels. The scores show the agreement with the original; accuracy is not assessed."
        )
    return remarks
