"""Tests that texts for users name no path of the machine."""

import tempfile
import traceback
from pathlib import Path

import pytest

from service.core.hidden_paths import HiddenPaths
from service.core.settings import Settings

PATHS = HiddenPaths(
    (Path("/srv/data"), Path("/tmp"), Path("/home/op")), (Path("/opt/vitfit"),), (Path("/srv/data/open"),)
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Load model from /srv/data/uploads/x_1/model.onnx failed", "Load model from model.onnx failed"),
        ("should be inside '/tmp/vitfit-model-abc'.", "should be inside 'vitfit-model-abc'."),
        ("would link to '/tmp/a/etc/passwd', which is outside", "would link to 'passwd', which is outside"),
        ("No such file: '/srv/data'", "No such file: '(a folder of the server)'"),
        ('  File "/opt/vitfit/models/loading/x.py", line 3', '  File "models/loading/x.py", line 3'),
        ("/srv/database and ../tmp/a and a/tmp/b stay", "/srv/database and ../tmp/a and a/tmp/b stay"),
        ("the folder '/srv/data/open/cats' is empty", "the folder '/srv/data/open/cats' is empty"),
        ("see /home/op/.cache/huggingface/token.", "see token."),
        ("[/tmp/a.png, /tmp/b.png]", "[a.png, b.png]"),
    ],
)
def test_paths_become_names(text: str, shown: str) -> None:
    assert PATHS.text(text) == shown


def test_facts_are_cleaned_too() -> None:
    facts = {"file": "/tmp/a/b.onnx", "files": ["/tmp/c.png"], "number": 3, "inner": {"x": None}}
    assert PATHS.value(facts) == {"file": "b.onnx", "files": ["c.png"], "number": 3, "inner": {"x": None}}


def test_a_server_hides_its_folders_and_its_code(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    paths = HiddenPaths.of(Settings(data=tmp_path / "data", allowed_roots=(allowed,)))
    try:
        Settings(port=-1)
    except ValueError:
        found = traceback.format_exc()
    shown = paths.text(found)
    assert str(Path(__file__).parent) in found and str(Path(__file__).parent) not in shown
    assert "tests/service/core/test_hidden_paths.py" in shown
    assert "/site-packages/" not in shown and "pydantic" in shown
    assert paths.text(f"{tempfile.gettempdir()}/x/y and {tmp_path}/data/z") == "y and z"
    assert paths.text(f"'{allowed}/cats'") == f"'{allowed}/cats'"
