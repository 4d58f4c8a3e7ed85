"""Find the calls that start programs, run code, or open files whose names are not fixed in the code.

tests/reviewed_calls.toml lists each of them with the reason why it is safe.
"""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.import_rules import ROOT

LIST = Path(__file__).with_name("reviewed_calls.toml")
FOLDERS = ("models", "search", "latency", "service", "client/vitfit")
STARTS = ("os.exec", "os.spawn", "os.posix_spawn", "subprocess.")
"""Beginnings of the names of calls that start a program."""
NAMES = frozenset(
    [
        *("os.system", "os.popen", "os.fork", "os.open", "eval", "exec", "compile", "__import__", "import_module"),
        *("open", "io.open", "gzip.open", "bz2.open", "lzma.open", "tarfile.open", "zipfile.ZipFile", "Image.open"),
        *("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "marshal.loads", "shelve.open"),
        *("torch.load", "torch.jit.load", "np.load", "numpy.load", "onnx.load", "load_file", "safe_open"),
        *("onnxruntime.InferenceSession", "joblib.load", "FileResponse", "shutil.copyfile"),
    ]
)
METHODS = frozenset(["open", "read_text", "read_bytes", "from_pretrained", "import_module", "load_module", "fromfile"])
"""Names of methods that open a file, whatever the object is."""
HIDEABLE = frozenset(["subprocess", "pickle", "cloudpickle", "marshal", "shelve"])
"""Modules that must keep their names, because otherwise their calls would not be found."""
OURS = frozenset(["Evaluation.open", "Service.open", "cls.open"])
"""Methods of vitfit that are called open and open no file themselves."""


@dataclass(frozen=True, order=True)
class Call:
    """A call in a function. function: its name with those of the classes and functions around it."""

    file: str
    function: str
    call: str

    def __str__(self) -> str:
        return f"{self.file}: {self.call} in {self.function}"


def calls() -> set[Call]:
    """Return every call of the kinds above in the code of vitfit."""
    found = set()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found |= set(calls_in(path.read_text(), path.relative_to(ROOT).as_posix()))
    return found


def calls_in(text: str, file: str) -> Iterator[Call]:
    yield from _walk(ast.parse(text), file, "the module")


def _walk(node: ast.AST, file: str, place: str) -> Iterator[Call]:
    for child in ast.iter_child_nodes(node):
        inner = place
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = child.name if place == "the module" else f"{place}.{child.name}"
        if isinstance(child, ast.Call) and _is_reviewed(name := ast.unparse(child.func), child):
            yield Call(file, place, name)
        if isinstance(child, ast.ImportFrom) and child.module in HIDEABLE:
            yield Call(file, place, f"from {child.module} import")
        if isinstance(child, ast.Import):
            renamed = [alias.name for alias in child.names if alias.asname and alias.name in HIDEABLE]
            yield from (Call(file, place, f"import {name} as") for name in renamed)
        yield from _walk(child, file, inner)


def _is_reviewed(name: str, call: ast.Call) -> bool:
    if name in OURS:
        return False
    if name.startswith(STARTS):
        return True
    if name in NAMES:
        return not _is_fixed(call)
    _, dot, method = name.rpartition(".")
    return bool(dot) and method in METHODS


def _is_fixed(call: ast.Call) -> bool:
    """Return whether the first argument is text in the code, such as the name of a module."""
    return bool(call.args) and isinstance(call.args[0], ast.Constant)


def reviewed() -> dict[str, str]:
    """Return the calls of the list, each with the reason why it is safe."""
    return {call: group["why"] for group in tomllib.loads(LIST.read_text())["reason"] for call in group["calls"]}
