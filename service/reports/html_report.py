"""Write the report as one self-contained HTML file: the numbers of `report.json`, and plots as inline SVG."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from vitfit.report import Report

from models.atomic_write import write_whole
from service.reports import report_text

TEMPLATES = Path(__file__).parent / "templates"
AXES = ("heads", "qk", "v", "neurons", "tokens", "inputs")
COLORS = {"original": "#8a8f98", "delivered": "#0b7285", "trial": "#4c6ef5", "limit": "#c92a2a"}
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "vitfit"  # a fixed salt, so that equal reports give identical files


def write_html(report: Report, path: Path, patches: dict[str, Any] | None = None) -> None:
    """Write the HTML report to `path`.

    patches: the content of patches.json; None if no tokens are removed.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    plots = {"trials": _trials(report), "blocks": _blocks(report), "latency": _latency(report)}
    text = environment.get_template("report.html").render(
        report=report,
        rows=report_text.headline(report),
        notes=report_text.notes(report),
        plots=plots,
        patches=patches,
        dimmed=_dimmed,
    )
    write_whole(path, text)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _trials(report: Report) -> str:
    """Plot the score of each trial against its predicted cost for the first budget."""
    figure = Figure(figsize=(6, 3.4))
    axes = figure.subplots()
    label, limit = report.budgets[0].label, report.budgets[0].limit
    costs = [trial.costs[label] for trial in report.trials]
    scores = [trial.score for trial in report.trials]
    starts = [i for i, trial in enumerate(report.trials) if trial.start]
    axes.scatter(costs, scores, s=18, color=COLORS["trial"], label="trial")
    if starts:
        axes.scatter(
            [costs[i] for i in starts], [scores[i] for i in starts], s=18, color=COLORS["original"], label="start"
        )
    front = _front(list(zip(costs, scores, strict=True)))
    axes.plot(*zip(*front, strict=True), color=COLORS["trial"], linewidth=1, label="Pareto front")
    chosen = next(trial for trial in report.trials if trial.number == report.delivered_trial)
    axes.scatter([chosen.costs[label]], [chosen.score], s=70, color=COLORS["delivered"], label="delivered")
    axes.axvline(limit, color=COLORS["limit"], linewidth=1, label="limit")
    axes.set_xlabel(f"predicted {label}")
    axes.set_ylabel("score on the selection split")
    axes.legend(frameon=False, fontsize=8, loc="lower right")  # there few trials lie; "best" is slow
    return _svg(figure)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front: the (cost, score) points that no other point beats in both."""
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def _dimmed(patches: dict[str, Any], kept: list[int]) -> str:
    """Return an SVG path that covers the removed patches. One patch is 1 x 1 units."""
    columns = patches["grid"][1]
    gone = sorted(set(range(patches["patches"])) - set(kept))
    return "".join(f"M{place % columns} {place // columns}h1v1h-1z" for place in gone)


def _blocks(report: Report) -> str:
    """Plot the kept share, 0 to 1, for each block and axis."""
    figure = Figure(figsize=(6, 1.1 * len(AXES)))
    for place, axis in enumerate(AXES):
        axes = figure.add_subplot(len(AXES), 1, place + 1)
        sizes = [getattr(block, axis) for block in report.blocks]
        shares = [kept / max(original, 1) for kept, original in sizes]
        axes.bar(range(len(shares)), [1.0] * len(shares), color="#e9ecef")
        axes.bar(range(len(shares)), shares, color=COLORS["delivered"])
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 1])
        axes.set_ylabel(axis, rotation=0, ha="right", va="center", fontsize=9)
        axes.set_xticks(range(len(shares)) if place == len(AXES) - 1 else [])
    axes.set_xlabel("block")
    return _svg(figure)


def _latency(report: Report) -> str:
    """Plot a histogram of all latency samples (ms) of the original and the delivered file."""
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    for name, processes in (("original", report.samples_ms.original), ("delivered", report.samples_ms.delivered)):
        samples = [run for process in processes for burst in process for run in burst]
        axes.hist(samples, bins=60, color=COLORS[name], alpha=0.7, label=name)
    axes.set_xlabel("ms per run")
    axes.set_ylabel("runs")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return _svg(figure)
