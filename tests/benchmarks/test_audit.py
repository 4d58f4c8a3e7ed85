"""Tests of the comparison of installed packages with a file of advisories."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from benchmarks.audit import faults, installed, main, read


def advisory(*events: dict[str, str], name: str = "My_Package", **more: Any) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}]
    return {
        "id": "X-1",
        "summary": "bad",
        "affected": [{"package": {"ecosystem": "PyPI", "name": name}, "ranges": ranges}],
    } | more


@pytest.mark.parametrize(
    ("events", "mine", "is_affected"),
    [
        ([{"introduced": "0"}, {"fixed": "1.5"}], "1.4.9", True),
        ([{"introduced": "0"}, {"fixed": "1.5"}], "1.5", False),
        ([{"introduced": "1.0"}, {"last_affected": "2.0"}], "2.0", True),
        ([{"introduced": "1.0"}, {"last_affected": "2.0"}], "2.0.1", False),
        ([{"introduced": "1.0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"fixed": "2.1"}], "1.7", False),
        ([{"introduced": "1.0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"fixed": "2.1"}], "2.0.5", True),
        ([{"introduced": "1.10"}], "1.9", False),
        ([{"introduced": "0"}], "not a version", False),
    ],
)
def test_ranges_of_versions(events: list[dict[str, str]], mine: str, is_affected: bool) -> None:
    found = list(faults([advisory(*events)], {"my-package": mine}))
    assert found == ([f"my-package {mine}: X-1 bad"] if is_affected else [])


def test_withdrawn_advisories_and_other_ecosystems_do_not_count() -> None:
    every = {"introduced": "0"}
    other = advisory(every)
    other["affected"][0]["package"]["ecosystem"] = "npm"
    assert list(faults([advisory(every, withdrawn="2026-01-01"), other], {"my-package": "1"})) == []


def test_the_exit_status_tells_whether_an_installed_package_has_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = advisory({"introduced": "0"}, name="NumPy")
    (tmp_path / "some.json").write_text(json.dumps({"vulns": [ours]}))
    assert main([str(tmp_path / "some.json")]) == 1
    assert f"numpy {version('numpy')}: X-1 bad" in capsys.readouterr().out
    (tmp_path / "none.jsonl").write_text(
        json.dumps(advisory({"introduced": "0"})) + "\n" + json.dumps(ours | {"affected": []})
    )
    assert main([str(tmp_path / "none.jsonl")]) == 0
    assert "2 advisories, 0 faults" in capsys.readouterr().out and "torch" in installed()
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="no advisories"):
        read(tmp_path / "other.json")
