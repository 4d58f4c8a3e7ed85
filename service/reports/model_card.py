"""The model card that is delivered with the ONNX file."""

from typing import Any

from service.reports import report_text as story


def model_card(report: dict[str, Any]) -> str:
    """Return the model card as Markdown. report: the content of report.json."""
    table = "\n".join(f"| {label} | {before} | {after} |" for label, before, after in story.headline(report))
    notes = "\n".join(f"- {note}" for note in story.notes(report))
    blocks = "\n".join(
        f"| {b['name']} | {_of(b['heads'])} | {_of(b['qk'])} | {_of(b['v'])} | {_of(b['neurons'])} | {_of(b['tokens'])} |"
        for b in report["blocks"]
    )
    return f"""# {report["model"]}, pruned by vitfit

Physically smaller: heads, dims, neurons and tokens are gone from the file, not masked.

| | original | pruned |
|---|---|---|
{table}

{notes}

Measured on {report["machine"]} ({report["setting"]}), original and pruned file interleaved.

## What is kept

| block | heads | q/k dims per head | v dims per head | neurons | tokens after attention |
|---|---|---|---|---|---|
{blocks}

## Limits

The scores hold for data like the test split of the job. Latency holds for the machine and setting above; another device
needs its own budget. `manifest.json` has digests, versions, seed and preprocessing.
"""


def _of(pair: list[int]) -> str:
    return f"{pair[0]} of {pair[1]}"
