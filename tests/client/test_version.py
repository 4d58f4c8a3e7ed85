"""Check that a single number gives the version of vitfit."""

from importlib.metadata import version
from pathlib import Path

from typer.testing import CliRunner
from vitfit.cli import app

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_says_the_version_that_both_distributions_have() -> None:
    number = (ROOT / "client" / "vitfit" / "VERSION").read_text().strip()
    assert CliRunner().invoke(app, ["--version"]).output == f"vitfit {number}\n"
    assert version("vitfit") == version("vitfit-server") == number
