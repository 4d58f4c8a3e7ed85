"""Check that the web process loads nothing heavy.

The second test shows that the first one would notice a heavy package.
"""

import subprocess
import sys

import pytest

from service.core.processes import ROOT

HEAVY = ("torch", "timm", "onnx", "onnxruntime", "numpy", "scipy")
PROBE = "import sys\n{}\nprint(*sorted(set({}) & set(sys.modules)))"


def loaded_after(statement: str) -> list[str]:
    """Return the heavy packages that a fresh interpreter has loaded after `statement`."""
    command = [sys.executable, "-c", PROBE.format(statement, HEAVY)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.split()


CATALOG = "from service.jobs.engine import catalog; offered = catalog('pipeline'); offered.devices(); offered.methods()"


@pytest.mark.parametrize("statement", ["import service.app", f"import service.serve, service.jobs.worker\n{CATALOG}"])
def test_the_server_loads_nothing_heavy(statement: str) -> None:
    assert loaded_after(statement) == []


def test_the_probe_notices_what_is_loaded() -> None:
    assert loaded_after("import service.app, numpy") == ["numpy"]
