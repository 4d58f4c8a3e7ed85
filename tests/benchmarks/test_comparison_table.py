"""Tests of the comparison's table.

The table shows means over seeds and paired differences to joint. Recovery and training have separate rows.
"""

from typing import Any

import pytest

from benchmarks.comparison.table import markdown, points

MACHINE = {"machine": "a machine"}


def row(name: str, seed: int, correct: int | None, keep: float = 0.6, **more: Any) -> dict[str, Any]:
    known = {
        "row": name,
        "seed": seed,
        "keep": keep,
        "recovery": True,
        "trained": False,
        "ours": name == "joint",
    } | more
    if correct is None:
        return known | {"unreachable": "too small"}
    figures = {"correct": correct, "dense": 950, "images": 1000, "evaluations": 40, "seconds": 10.0}
    return known | figures | {"macs_keep": 0.5, "measured_keep": keep}


def cells(text: str, name: str, section: str) -> list[str]:
    lines = text.split(section)[1].splitlines()
    return next([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {name} |"))


def test_losses_are_means_over_seeds_and_leads_are_paired() -> None:
    rows = [row("joint", seed, 948 - seed) for seed in range(3)]
    rows += [row("other", seed, 938 - 2 * seed) for seed in range(3)]
    text = markdown(rows, MACHINE)
    assert points(rows[0]) == pytest.approx(0.2)
    section = "### 0.6 of the latency, without training"
    assert cells(text, "joint", section)[2:4] == ["0.30 (0.10)", "0.00 (0.00)"]
    assert cells(text, "other", section)[2:4] == ["1.40 (0.20)", "1.10 (0.06)"]
    assert text.index("| joint |") < text.index("| other |"), "the least loss stands first"


def test_training_and_recovery_are_kept_apart() -> None:
    rows = [row("joint", 0, 940), row("joint", 0, 950, trained=True), row("other", 0, 900, recovery=False)]
    text = markdown([*rows, row("other", 0, 930)], MACHINE)
    assert cells(text, "joint", "### 0.6 of the latency, after a short training")[2] == "0.00 (0.00)"
    before = text.split("### 0.6 of the latency, after")[0]
    assert "| other | no | 5.00" in before and "| other | yes | 2.00" in before


def test_what_cannot_reach_the_budget_says_so() -> None:
    text = markdown([row("joint", 0, 940), row("merging", 0, None)], MACHINE)
    assert cells(text, "merging", "### 0.6 of the latency, without training")[2] == "not reachable"
