"""Tests of the client package: what it needs, and what it says when the server's packages are missing."""

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner
from vitfit import verbs

CLIENT = Path(__file__).resolve().parents[2] / "client"
FORBIDDEN = (
    "torch",
    "timm",
    "numpy",
    "onnx",
    "onnxruntime",
    "fastapi",
    "sqlalchemy",
    "service",
    "models",
    "latency",
    "search",
)

# The code runs in a fresh interpreter. Its path has the client, and it cannot import the forbidden names at all.
BLOCKED = """
import sys
sys.path.insert(0, {client!r})
sys.path = [entry for entry in sys.path if entry not in ("", {root!r})]
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocker())
{body}
"""


def run_blocked(body: str) -> subprocess.CompletedProcess[str]:
    code = BLOCKED.format(client=str(CLIENT), root=str(CLIENT.parent), forbidden=FORBIDDEN, body=body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/")


def test_the_client_and_its_command_import_without_the_server() -> None:
    done = run_blocked("import vitfit, vitfit.cli; print(vitfit.Client.__name__)")
    assert done.stdout == "Client\n", done.stderr


def test_the_blocker_blocks() -> None:
    assert "blocked: torch" in run_blocked("import torch").stderr


def test_verbs_of_the_server_are_explained_where_it_cannot_be_imported() -> None:
    done = run_blocked("sys.argv = ['vitfit', 'serve', '--port', '1']; from vitfit.cli import main; main()")
    assert done.returncode == 1
    assert done.stderr.startswith("error: `vitfit serve` needs the package vitfit-server")
    assert "Traceback" not in done.stderr


def app_with(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> typer.Typer:
    monkeypatch.setattr(verbs, "entry_points", lambda group: EntryPoints(points))
    app = typer.Typer()
    app.command("other")(lambda: None)
    verbs.load_verbs(app)
    return app


@pytest.mark.parametrize("name", ["serve", "compress", "measure"])
def test_without_any_plug_in_a_verb_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    result = CliRunner().invoke(app_with(monkeypatch), [name, "anything", "--at", "all"])
    assert result.exit_code == 1
    assert "not installed here" in result.output and "docker/" in result.output


def plug_in(app: typer.Typer) -> None:
    """Register a verb, as a package's `register` function does."""
    app.command("hello")(lambda: typer.echo("hello"))


def test_a_plug_in_adds_its_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("test", f"{__name__}:plug_in", verbs.GROUP)
    assert CliRunner().invoke(app_with(monkeypatch, point), ["hello"]).output == "hello\n"


def test_the_public_names() -> None:
    import vitfit

    assert vitfit.__all__ == sorted(vitfit.__all__)
    assert all(getattr(vitfit, name).__module__.startswith("vitfit.") for name in vitfit.__all__)
