"""The report as one self-contained HTML file: the numbers of `report.json`, with plots as SVG inside."""

import io
import os
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from service import story

TEMPLATES = Path(__file__).parent / "templates"
AXES = ("heads", "qk", "v", "neurons", "tokens", "inputs")
COLORS = {"original": "#8a8f98", "delivered": "#0b7285", "trial": "#4c6ef5", "limit": "#c92a2a"}
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "vitfit"  # equal reports are equal files


def write_html(report: dict[str, Any], path: Path) -> None:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    plots = {"trials": _trials(report), "blocks": _blocks(report), "latency": _latency(report)}
    text = environment.get_template("report.html").render(
        report=report, rows=story.headline(report), notes=story.notes(report), plots=plots
    )
    beside = path.with_suffix(".part")
    beside.write_text(text)
    os.replace(beside, path)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _trials(report: dict[str, Any]) -> str:
    """Score against the first budget's predicted cost."""
    figure = Figure(figsize=(6, 3.4))
    axes = figure.subplots()
    limits = {b["label"]: b["limit"] for b in report["budgets"]}
    label = next(iter(limits))
    costs = [trial["costs"][label] for trial in report["trials"]]
    scores = [trial["score"] for trial in report["trials"]]
    axes.scatter(costs, scores, s=18, color=COLORS["trial"], label="trial")
    chosen = next(t for t in report["trials"] if t["number"] == report["delivered_trial"])
    axes.scatter([chosen["costs"][label]], [chosen["score"]], s=70, color=COLORS["delivered"], label="delivered")
    axes.axvline(limits[label], color=COLORS["limit"], linewidth=1, label="limit")
    axes.set_xlabel(f"predicted {label}")
    axes.set_ylabel("score on the selection split")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _labelled(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Budgets with the label under which trials keep their costs."""
    labels = list(report["trials"][0]["costs"])
    return [{**budget, "label": label} for budget, label in zip(report["budgets"], labels, strict=True)]


def _blocks(report: dict[str, Any]) -> str:
    """Kept share per block and axis."""
    figure = Figure(figsize=(6, 1.1 * len(AXES)))
    for place, axis in enumerate(AXES):
        axes = figure.add_subplot(len(AXES), 1, place + 1)
        shares = [block[axis][0] / max(block[axis][1], 1) for block in report["blocks"]]
        axes.bar(range(len(shares)), [1.0] * len(shares), color="#e9ecef")
        axes.bar(range(len(shares)), shares, color=COLORS["delivered"])
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 1])
        axes.set_ylabel(axis, rotation=0, ha="right", va="center", fontsize=9)
        axes.set_xticks(range(len(shares)) if place == len(AXES) - 1 else [])
    axes.set_xlabel("block")
    return _svg(figure)


def _latency(report: dict[str, Any]) -> str:
    """All samples of both files, by process."""
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    for name in ("original", "delivered"):
        samples = [run for process in report["samples_ms"][name] for burst in process for run in burst]
        axes.hist(samples, bins=60, color=COLORS[name], alpha=0.7, label=name)
    axes.set_xlabel("ms per run")
    axes.set_ylabel("runs")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)
