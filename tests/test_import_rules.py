"""Tests of the import rules: imports go down only, and the web process stays light.

For each rule, a planted violation shows that the rule can fail.
"""

import ast
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.import_rules import FLOORS, HEAVY, LIGHT, PIPELINE_SIDE, ROOT, SCHEMAS, modules, violations, without_floor

PROBE = """
import sys, tempfile
from pathlib import Path
from service.app import create_app
from service.core.settings import Settings
create_app(Settings(data=Path(tempfile.mkdtemp()) / "data", engine="pipeline"))
{}
print(*sorted(set({}) & set(sys.modules)))
"""


def test_the_rules_hold() -> None:
    assert violations() == []


def test_the_rules_speak_of_files_that_exist() -> None:
    """Check the names in the rules, because a renamed file or folder must stay under its rule."""
    known = modules()
    folders = {f"{room}.{folder}" for room, floors in FLOORS.items() for floor in floors for folder in floor}
    assert known.keys() >= {*LIGHT, *SCHEMAS, *PIPELINE_SIDE, *folders}
    assert {name.partition(".")[0] for name in known} == {"models", "search", "latency", "service", "vitfit"}


def test_every_file_stands_on_a_floor() -> None:
    assert without_floor(modules()) == []


def test_no_folder_is_a_heap_and_no_file_a_book() -> None:
    """Limit the files in a folder and the lines in a file, so that a newcomer can read them quickly."""
    tracked = [path for path in _python_files() if path.name != "__init__.py"]
    counts = Counter(path.parent for path in tracked)
    most = {folder: 25 if "tests" in folder.parts else 20 for folder in counts}
    most[Path("benchmarks")] = 30  # one script for each claim, so all files are of one kind
    assert {folder: count for folder, count in counts.items() if count > most[folder]} == {}
    assert [path for path in tracked if len(path.read_text().splitlines()) > 400] == []


def test_no_function_is_longer_than_a_screen() -> None:
    found = [
        f"{path}:{node.lineno} {node.name}"
        for path in _python_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60  # type: ignore[operator]
    ]
    assert found == []


def _python_files() -> list[Path]:
    folders = (
        ROOT / name for name in ("models", "search", "latency", "service", "client/vitfit", "benchmarks", "tests")
    )
    return [path.relative_to(ROOT) for folder in folders for path in sorted(folder.rglob("*.py"))]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("client/vitfit/client.py", "import models.errors"),
        ("client/vitfit/render.py", "def f():\n    from service.jobs.journal import MemoryJournal"),
        ("models/structure/plan.py", "from search.policy import Policy"),
        ("models/pruning/prune.py", "import latency"),
        ("models/record.py", "import numpy"),
        ("models/structure/structure.py", "from models.networks.torch_network import TorchNetwork"),
        ("models/errors.py", "from .pruning import prune"),
        ("models/pruning/prune.py", "from models.networks.network import Network"),
        ("models/training/loop.py", "from models.evaluation.metrics import agreement"),
        ("models/graph/tracing/atoms.py", "from models.graph.network import GraphNetwork"),
        ("models/graph/network.py", "from models.loading.load_model import open_model"),
        ("search/loop/decode.py", "from latency.devices.setting import Setting"),
        ("search/loop/search.py", "import service.jobs.journal"),
        ("search/budgets.py", "def f():\n    import pydantic"),
        ("search/spaces/space.py", "from search.loop.trial import Trial"),
        ("latency/measuring/meter.py", "from search.policy import Policy"),
        ("latency/devices/devices.py", "import onnxruntime"),
        ("latency/prediction/table.py", "from tests.models import networks"),
        ("latency/measuring/meter.py", "from latency.prediction.table import Table"),
        ("service/app.py", "import torch"),
        ("service/jobs/job_store.py", "def f():\n    import numpy as np"),
        ("service/jobs/journal.py", "from service.api.context import Context"),
        ("service/storage/base.py", "from service.jobs.leases import Leases"),
        ("service/api/submission.py", "from latency.measuring.meter import Meter"),
        ("service/api/submission.py", "from models.data import dataset"),
        ("service/api/submission.py", "from service.pipeline import pipeline"),
        ("service/app.py", "from service.pipeline import pipeline"),
        ("service/app.py", 'import importlib\nimportlib.import_module("service.pipeline.evaluation")'),
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
    """Return the heavy packages that a fresh interpreter has loaded after it created the application."""
    command = [sys.executable, "-c", PROBE.format(further, sorted(HEAVY))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.split()


def test_the_application_stands_without_anything_heavy() -> None:
    assert loaded_by_the_web_process() == []


def test_the_probe_notices_what_is_loaded() -> None:
    assert "onnxruntime" in loaded_by_the_web_process("import onnxruntime")
