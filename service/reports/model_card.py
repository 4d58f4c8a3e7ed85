"""The model card that is delivered with the ONNX file."""

from vitfit.report import Report

from service.reports import report_text


def model_card(report: Report) -> str:
    """Return the model card as Markdown."""
    table = "\n".join(f"| {label} | {before} | {after} |" for label, before, after in report_text.headline(report))
    notes = "\n".join(f"- {note}" for note in report_text.notes(report))
    blocks = "\n".join(
        f"| {b.name} | {_of(b.heads)} | {_of(b.qk)} | {_of(b.v)} | {_of(b.neurons)} | {_of(b.tokens)} |"
        for b in report.blocks
    )
    return f"""# {report.model}, pruned by vitfit

This network is physically smaller: the file does not contain the removed heads, dims, neurons and tokens.

| | original | pruned |
|---|---|---|
{table}

{notes}

Latency was measured on {report.machine} ({report.setting}), with the original and the pruned file in turn.

## What is kept

| block | heads | q/k dims per head | v dims per head | neurons | tokens after attention |
|---|---|---|---|---|---|
{blocks}

## Limits

The scores hold for data like the test split of the job. The latency holds for the machine and the setting above. For
another device, run a job with a budget for that device. `manifest.json` has digests, versions, seed and preprocessing.
"""


def _of(pair: tuple[int, int]) -> str:
    return f"{pair[0]} of {pair[1]}"
