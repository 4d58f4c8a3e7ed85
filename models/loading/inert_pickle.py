"""Read a file of torch.save. Nothing in the file is executed.

torch's own reader for weights makes the tensors. Training scripts store other objects beside them: arguments, paths,
configurations, numpy numbers. Each of these becomes an inert object. It takes any arguments, and it runs nothing. A
function, and a class that is not known to hold only values, are refused by name.
"""

import _compat_pickle
import collections
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from models.errors import DamagedFile, UnsafeFile

MOST_BYTES = 256 << 20
"""Largest pickle inside a zip that is searched for names. The tensors are beside it and not in it."""
MOST_MODULES, MOST_DEEP = 20_000, 100
"""Largest number of modules in a pickled model, and how deep they may lie in each other."""
SAVE = "Save the weights alone: torch.save(model.state_dict(), 'weights.pth')."


class Inert:
    """Takes the place of an object that is no tensor. `state` is what the file stored for the object."""

    state: Any = None

    def __new__(cls, *_: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class InertDict:
    """Makes a dictionary in place of an object of a class that derives from dict."""

    def __new__(cls, *_: Any) -> Any:
        return collections.OrderedDict()


class InertList:
    """Makes a list in place of an object of a class that derives from list or resembles one."""

    def __new__(cls, *_: Any) -> Any:
        return []


DICTS = ("collections.defaultdict", "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "easydict.EasyDict")
LISTS = ("collections.deque",)
VALUES = frozenset(
    [
        *("argparse.Namespace", "types.SimpleNamespace", "functools.partial", "uuid.UUID", "decimal.Decimal"),
        *("collections.defaultdict", "collections.deque", "fractions.Fraction"),
        *(f"builtins.{kind.__name__}" for kind in (bool, bytes, dict, float, frozenset, int, list, object, str, tuple)),
        *("builtins.range", "builtins.slice"),
    ]
)
"""Names of Python's own classes that hold only values."""
VALUE_MODULES = frozenset(
    [
        *("datetime", "pathlib", "pathlib._local", "typing", "enum", "numpy.dtypes"),
        *("numpy.core.multiarray", "numpy._core.multiarray", "numpy.random._pickle"),
    ]
)
"""Modules whose names all stand for values."""


def read_pickle(path: Path) -> Any:
    """Return the object of a file of torch.save, with its tensors, and with inert objects for all others.

    Raises: UnsafeFile for a pickle that names code; DamagedFile.
    """
    names = set(_names(path))
    if refused := sorted(name for name in names if not _is_torchs_own(name) and not _is_value(name)):
        raise UnsafeFile(_refusal(refused), names=refused[:20])
    ours = sorted(name for name in names if _is_value(name) and not _is_torchs_own(name))
    first: Exception | None = None
    for unknown in (Inert, InertDict):
        stubs: list[Any] = [(_stub(name, unknown), name) for name in ours]
        try:
            with torch.serialization.safe_globals(stubs), path.open("rb") as file:  # of a path, torch reads the suffix
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can raise any exception
            first = first or error
            if not ours:
                break
    assert first is not None
    raise _as_ours(first) from first


def weights_of_module(pickled: Inert) -> dict[str, Any]:
    """Return the weights of a pickled torch module by their names, as its state_dict() gives them."""
    found: dict[str, Any] = {}
    waiting = [("", pickled)]
    for _ in range(MOST_MODULES):  # a hostile file may hold a module that contains itself
        if not waiting:
            break
        prefix, module = waiting.pop()
        state = module.state if isinstance(module.state, dict) else {}
        passing = state.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, set) else set()
        for kind in ("_parameters", "_buffers"):
            own = _entries(state, kind)
            found |= {f"{prefix}{name}": value for name, value in own if value is not None and name not in passing}
        if prefix.count(".") < MOST_DEEP:
            inner = _entries(state, "_modules")
            waiting += [(f"{prefix}{name}.", one) for name, one in inner if isinstance(one, Inert)]
    return found


def _entries(state: dict[Any, Any], kind: str) -> list[tuple[Any, Any]]:
    value = state.get(kind)
    return list(value.items()) if isinstance(value, dict) else []


def _stub(name: str, unknown: type) -> type:
    base = InertDict if name in DICTS else InertList if name in LISTS else unknown
    return type(name, (base,), {})


def _is_value(name: str) -> bool:
    """Return whether an inert object may take the place of this class.

    A class of another package than Python's own has a name in capitals. A function has not.
    """
    module, _, last = name.rpartition(".")
    if module.partition(".")[0] in sys.stdlib_module_names:
        return name in VALUES or module in VALUE_MODULES
    if module == "numpy":
        return isinstance(getattr(np, last, None), type)
    return module in VALUE_MODULES or last.lstrip("_")[:1].isupper()


def _is_torchs_own(name: str) -> bool:
    """Return whether torch's reader for weights decides about this name: tensors, storages and data types."""
    return name in ("collections.OrderedDict", "collections.Counter", "_codecs.encode", *BUILT_IN) or (
        name.startswith(("torch._utils._rebuild", "torch._tensor._rebuild")) or name.rpartition(".")[0] in TORCHS
    )


BUILT_IN = ("builtins.set", "builtins.bytearray", "builtins.complex")
TORCHS = ("torch", "torch.storage", "torch.serialization", "torch.cuda", "torch.nn.parameter")


def _refusal(names: list[str]) -> str:
    shown = ", ".join(name[:100] for name in names[:3])
    if all(name.startswith(("torch.", "timm.")) for name in names):
        return (
            f"The checkpoint holds a complete pickled model (it names {shown}). vitfit loads only its weights. {SAVE}"
        )
    return (
        f"The checkpoint is a pickle that tries to run code (it names {shown}). vitfit executed nothing. It loads only"
        f" tensors and plain values. {SAVE}"
    )


def _as_ours(error: Exception) -> UnsafeFile | DamagedFile:
    text = " ".join(str(error).rpartition("WeightsUnpickler error: ")[2].split()).partition(" Check the docu")[0]
    if "TorchScript" in text:
        return UnsafeFile(f"The file is a TorchScript archive, which holds code. vitfit loads only weights. {SAVE}")
    if isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in text:
        return UnsafeFile(
            f"The checkpoint is a pickle with objects that vitfit does not read ({text[:200]}). vitfit executed"
            f" nothing. It loads only tensors and plain values. {SAVE}"
        )
    return DamagedFile(
        f"vitfit cannot read the checkpoint ({text[:200]}). It reads safetensors, and files of torch.save with its"
        " default pickle_protocol. Upload the file again, or save it in one of these two forms."
    )


def _names(path: Path) -> Iterator[str]:
    """Yield the full names of all classes and functions that the pickles of a file name."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename.endswith(("/data.pkl", "data.pkl")) and info.file_size <= MOST_BYTES:
                        with archive.open(info) as file:
                            yield from _names_in(file)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError):
            return  # torch.load says what is wrong
        return
    with path.open("rb") as file:  # torch's older form: several pickles one after the other, then the tensors
        while True:
            yield from _names_in(file)
            if not _ended(file) or file.peek(1)[:1] != b"\x80":
                return


def _ended(file: IO[bytes]) -> bool:
    """Return whether the pickle that was just read is complete: its last byte is the opcode STOP."""
    if file.tell() == 0:
        return False
    file.seek(-1, 1)
    return file.read(1) == b"."


def _names_in(file: IO[bytes]) -> Iterator[str]:
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                yield _today(module, name)
    except Exception:
        return


def _today(module: str, name: str) -> str:
    """Return the full name that a name has in this version of Python: pickles still use the names of Python 2."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
