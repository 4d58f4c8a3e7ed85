"""Check that docs/results.md explains every figure of a job's result and report."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from service.core.processes import ROOT
from tests.support.small_jobs import Workshop, budget

pytestmark = pytest.mark.usefixtures("brief")
FREE = ("request", "samples_ms", "trials.policy", "trials.costs", "parity.forced", "dynamic_tokens")
"""Objects that the page explains without their keys. The user chose these keys, or the page explains them elsewhere."""


def explained() -> set[str]:
    return set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "results.md").read_text()))


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted path of each key.

    For a list, yield the keys of its first entry. Keys of `original` count as keys of `delivered`.
    """
    if path in FREE or not isinstance(value, dict | list):
        yield path.replace("original.", "delivered.")
    elif isinstance(value, list):
        yield from keys(value[0], path) if value and isinstance(value[0], dict) else [path]
    else:
        for name, inner in value.items():
            yield from keys(inner, f"{path}.{name}" if path else name)


def missing(document: dict[str, Any], known: set[str]) -> list[str]:
    """Return the keys that the page does not explain.

    It may explain a key by its path, or by its name below an explained path.
    """
    found = []
    for key in keys(document):
        above, _, name = key.rpartition(".")
        if key not in known and not (above in known and name in known):
            found.append(key)
    return found


@pytest.fixture(scope="module")
def documents(workshop: Workshop) -> dict[str, dict[str, Any]]:
    ran = workshop.run(budget("macs_keep", 0.7), method="cp-vit", trials=1)
    return {"result": ran.result.to_json(), "report": ran.report, "patches": ran.json("patches.json")}


@pytest.mark.parametrize("name", ["result", "report", "patches"])
def test_every_figure_is_explained(documents: dict[str, dict[str, Any]], name: str) -> None:
    known = explained() | ({"patches", "blocks", "images"} if name == "patches" else set())
    assert missing(documents[name], known) == [], "explain these in docs/results.md"


def test_a_figure_that_is_not_explained_is_noticed(documents: dict[str, dict[str, Any]]) -> None:
    document = json.loads(json.dumps(documents["result"]))
    document["delivered"]["latency"]["p42_ms"] = 1.0
    document["budgets"][0]["colour"] = "red"
    assert missing(document, explained()) == ["delivered.latency.p42_ms", "budgets.colour"]


def test_nothing_is_explained_that_is_not_there(documents: dict[str, dict[str, Any]]) -> None:
    known = {key for document in documents.values() for key in keys(document)}
    text = (ROOT / "docs" / "results.md").read_text()
    dotted = {
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", row)
    }
    assert [name for name in dotted if "." in name and not any(key.startswith(name) for key in known)] == []
