"""Imports go down only, and the web process stays light. Each rule is shown to fail on a planted violation."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_rules import HEAVY, LIGHT, PIPELINE_SIDE, ROOT, modules, violations

PROBE = """
import sys, tempfile
from pathlib import Path
from service.app import create_app
from service.settings import Settings
create_app(Settings(data=Path(tempfile.mkdtemp()) / "data", engine="pipeline"))
{}
print(*sorted(set({}) & set(sys.modules)))
"""


def test_the_rules_hold() -> None:
    assert violations() == []


def test_the_rules_speak_of_files_that_exist() -> None:
    """A renamed file must not slip out of its rule."""
    known = modules()
    assert known.keys() >= LIGHT
    assert known.keys() >= PIPELINE_SIDE
    assert {name.partition(".")[0] for name in known} == {"models", "search", "latency", "service", "vitfit"}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("client/vitfit/client.py", "import models.errors"),
        ("client/vitfit/render.py", "def f():\n    from service.journal import MemoryJournal"),
        ("models/plan.py", "from search.policy import Policy"),
        ("models/prune.py", "import latency"),
        ("models/record.py", "import numpy"),
        ("models/structure.py", "from models.torch_network import TorchNetwork"),
        ("models/errors.py", "from . import pruned"),
        ("search/decode.py", "from latency.setting import Setting"),
        ("search/search.py", "import service.journal"),
        ("search/budgets.py", "def f():\n    import pydantic"),
        ("latency/meter.py", "from search.policy import Policy"),
        ("latency/devices.py", "import onnxruntime"),
        ("latency/table.py", "from tests.models import networks"),
        ("service/app.py", "import torch"),
        ("service/jobs.py", "def f():\n    import numpy as np"),
        ("service/submission.py", "from latency.meter import Meter"),
        ("service/submission.py", "from models import data"),
        ("service/engine.py", "from service import pipeline"),
        ("service/routes/jobs.py", 'import importlib\nimportlib.import_module("service.evaluation")'),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str) -> None:
    for folder in ("models", "search", "latency", "service", "client/vitfit"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert violations(tmp_path) == []
    path = tmp_path / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    (found,) = violations(tmp_path)
    assert found.startswith(file.removeprefix("client/").removesuffix(".py").replace("/", "."))


def loaded_by_the_web_process(further: str = "") -> list[str]:
    """Heavy packages that a fresh interpreter has loaded once the application stands."""
    command = [sys.executable, "-c", PROBE.format(further, sorted(HEAVY))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.split()


def test_the_application_stands_without_anything_heavy() -> None:
    assert loaded_by_the_web_process() == []


def test_the_probe_notices_what_is_loaded() -> None:
    assert "onnxruntime" in loaded_by_the_web_process("import onnxruntime")
