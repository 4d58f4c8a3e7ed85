"""Tests of pickled checkpoints: harmless objects beside the weights are read, and code is refused and never runs."""

import argparse
import collections
import datetime
import enum
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import CheckpointMismatch, DamagedFile, UnsafeFile
from models.loading.inert_pickle import read_pickle
from tests.support.checkpoints import agrees, opened, vit


class Schedule(enum.Enum):
    COSINE = "cosine"


@dataclass(frozen=True, slots=True)
class Slotted:
    rate: float = 0.1


@dataclass
class Config:
    rate: float = 0.1
    schedule: Schedule = Schedule.COSINE


HARMLESS: dict[str, Any] = {
    "arguments": argparse.Namespace(lr=0.1, out=Path("out"), more=collections.OrderedDict(a=1)),
    "dictionary with default": collections.defaultdict(list, {"loss": [1.0]}),
    "path": Path("a/b"),
    "path of Windows": pathlib.PureWindowsPath("c:/a"),
    "numpy number": np.float64(0.9),
    "numpy array": np.arange(3),
    "numpy dtype": np.dtype("float16"),
    "state of numpy": np.random.get_state(),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "duration": datetime.timedelta(hours=3),
    "enumeration": Schedule.COSINE,
    "configuration": Config(),
    "configuration with slots": Slotted(),
    "partial": functools.partial(torch.nn.LayerNorm, eps=1e-6),
    "queue": collections.deque([1, 2]),
    "set": {1, 2},
    "class": float,
}


# In the older form, torch stores the source of modules, and its own reader refuses them.
@pytest.mark.parametrize(
    ("name", "is_zip"), [(name, is_zip) for name in HARMLESS for is_zip in (True, False) if is_zip or name != "partial"]
)
def test_harmless_objects_beside_the_weights_are_read(tmp_path: Path, name: str, is_zip: bool) -> None:
    weights = {"a": torch.arange(3.0)}
    torch.save({"model": weights, "args": HARMLESS[name]}, tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
    assert torch.equal(read_pickle(tmp_path / "w.pth")["model"]["a"], weights["a"])


class DictConfig:
    """Stands for the class of omegaconf, which keeps a state."""

    def __init__(self, content: Any) -> None:
        self._content = content


class CfgNode(dict[str, Any]):
    """Stands for the class of yacs, which is a dictionary."""


def test_configurations_of_packages_that_are_not_installed_are_read(tmp_path: Path) -> None:
    model = vit(1)
    homes = {"omegaconf.dictconfig": DictConfig, "yacs.config": CfgNode}
    with pytest.MonkeyPatch.context() as patch:
        for home, kind in homes.items():
            patch.setattr(kind, "__module__", home)
            patch.setitem(sys.modules, home.partition(".")[0], types.ModuleType(home.partition(".")[0]))
            patch.setitem(sys.modules, home, types.ModuleType(home))
            patch.setattr(sys.modules[home], kind.__name__, kind, raising=False)
        configuration = CfgNode(lr=0.1, inner=CfgNode(depth=2))
        content = {"model": model.state_dict(), "omega": DictConfig({"any": Any}), "yacs": configuration}
        torch.save(content, tmp_path / "w.pth")
    assert agrees(opened(tmp_path, (tmp_path / "w.pth").read_bytes()), model)


def test_a_complete_pickled_model_gives_its_weights(tmp_path: Path) -> None:
    model = vit(1)
    for content in (model, {"model": model, "epoch": 3}):
        assert agrees(opened(tmp_path, content), model)


class Endless:
    """Stands for a module that contains itself twice."""

    def __init__(self) -> None:
        self._modules = {"a": self, "b": self}


def test_a_module_in_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="no weights"):
        opened(tmp_path, {"model": Endless()})


class Malicious:
    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def malicious(marker: Path) -> dict[str, Malicious]:
    """Return objects whose pickle makes the file `marker` when it is executed."""
    return {
        "posix.system": Malicious(os.system, (f"touch {marker}",)),
        "builtins.eval": Malicious(eval, (f"open({str(marker)!r}, 'w')",)),
        "builtins.exec": Malicious(exec, (f"open({str(marker)!r}, 'w')",)),
        "subprocess.Popen": Malicious(subprocess.Popen, (["touch", str(marker)],)),
        "subprocess.check_output": Malicious(subprocess.check_output, (["touch", str(marker)],)),
        "io.open": Malicious(open, (str(marker), "w")),
        "builtins.getattr": Malicious(getattr, ("a", "upper")),
        "numpy.save": Malicious(np.save, (str(marker), 1)),
    }


@pytest.mark.parametrize("name", malicious(Path()))
@pytest.mark.parametrize("form", ["zip", "old", "plain 0", "plain 2"])
def test_a_pickle_with_code_is_refused_by_name_and_never_runs(tmp_path: Path, name: str, form: str) -> None:
    marker = tmp_path / "ran"
    content = {"model": {"a": torch.ones(1)}, "args": malicious(marker)[name]}
    if form.startswith("plain"):
        (tmp_path / "w.pth").write_bytes(pickle.dumps(content["args"], protocol=int(form[-1])))
    else:
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UnsafeFile, match=rf"tries to run code.*{name.rpartition('.')[2]}"):
        read_pickle(tmp_path / "w.pth")
    assert not marker.exists()


def test_newer_forms_of_pickles_run_nothing_either(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(malicious(marker)["posix.system"], protocol=4))
    with pytest.raises((UnsafeFile, DamagedFile)):
        read_pickle(tmp_path / "w.pth")
    assert not marker.exists()


def test_a_torchscript_archive_is_refused_as_that(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "w.pth"))
    with pytest.raises(UnsafeFile, match="TorchScript"):
        read_pickle(tmp_path / "w.pth")
