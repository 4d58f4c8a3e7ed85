"""Table of the rows: mean and standard deviation over seeds, and the paired difference to `joint`."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Key = tuple[float, str, bool, bool]
"""Latency budget as a share of the original's latency, name of the row, whether with recovery, whether trained."""


def markdown(rows: Sequence[dict[str, Any]], machine: dict[str, str]) -> str:
    groups: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["keep"], row["row"], row["recovery"], row["trained"]].append(row)
    reached = [row for row in rows if "correct" in row]
    dense = reached[0]["dense"] / reached[0]["images"]
    lines = [f"Dense: {100 * dense:.2f} % of {reached[0]['images']} test images.", ""]
    for trained, keep in sorted({(key[3], -key[0]) for key in groups}):
        lines += _section(-keep, trained, groups)
    return "\n".join([*lines, ", ".join(machine.values())])


def _section(keep: float, trained: bool, groups: dict[Key, list[dict[str, Any]]]) -> list[str]:
    lines = [
        f"### {keep} of the latency, {'after a short training' if trained else 'without training'}",
        "",
        "| row | recovery | points lost (mean, sd) | joint leads by (mean, s.e.) | MACs kept | "
        "latency kept, measured | evaluations | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    joint = {row["seed"]: row for row in groups.get((keep, "joint", True, trained), []) if "correct" in row}
    mine = {key: value for key, value in groups.items() if (key[0], key[3]) == (keep, trained)}
    for (_, name, recovery, _), found in sorted(mine.items(), key=lambda item: _mean_loss(item[1])):
        lines.append(f"| {name} | {'yes' if recovery else 'no'} | {_cells(found, joint)} |")
    return [*lines, ""]


def _cells(found: list[dict[str, Any]], joint: dict[int, dict[str, Any]]) -> str:
    there = [row for row in found if "correct" in row]
    if not there:
        return "not reachable | | | | | "
    lead = [points(row) - points(joint[row["seed"]]) for row in there if row["seed"] in joint]
    error = statistics.stdev(lead) / len(lead) ** 0.5 if len(lead) > 1 else 0.0
    losses = [points(row) for row in there]
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    macs, latency = (statistics.mean(row[k] for row in there) for k in ("macs_keep", "measured_keep"))
    return (
        f"{statistics.mean(losses):.2f} ({spread:.2f}) | "
        f"{statistics.mean(lead) if lead else 0:.2f} ({error:.2f}) | "
        f"{macs:.3f} | {latency:.3f} | {there[0]['evaluations']} | "
        f"{statistics.mean(row['seconds'] for row in there):.0f}"
    )


def points(row: dict[str, Any]) -> float:
    """Return the accuracy that this row lost, in percentage points."""
    return float(100 * (row["dense"] - row["correct"]) / row["images"])


def _mean_loss(found: list[dict[str, Any]]) -> float:
    there = [points(row) for row in found if "correct" in row]
    return statistics.mean(there) if there else float("inf")
