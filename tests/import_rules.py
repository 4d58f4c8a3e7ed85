"""Rules for imports between modules, from shared/ARCHITECTURE.md.

The functions read the imports from the syntax trees and compare them with the rules.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "search", "latency", "service")
OURS = (*ROOMS, "vitfit", "benchmarks", "tests")
MAY_IMPORT = {
    "vitfit": {"vitfit"},
    "models": {"models"},
    "search": {"models", "search"},
    "latency": {"models", "latency", "vitfit"},
    "service": {"models", "search", "latency", "service", "vitfit"},
}
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "models": (
        ("errors", "field_errors", "offline", "record", "atomic_write", "throttle"),
        ("structure", "data"),
        ("families",),
        ("statistics",),
        ("rotation",),
        ("pruning",),
        ("export",),
        ("quantization",),
        ("networks",),
        ("training", "evaluation", "graph.tracing"),
        ("graph.tokens",),
        ("graph",),
        ("loading",),
    ),
    "search": (("budgets", "methods", "policy", "ranking", "token_rule"), ("criteria", "spaces"), ("loop",)),
    "latency": (("devices",), ("measuring",), ("prediction",)),
    "service": (
        ("core",),
        ("db",),
        ("storage",),
        ("library",),
        ("jobs",),
        ("cluster", "middleware", "reports"),
        ("api", "pipeline"),
        ("api.routes",),
        ("app", "serve", "token_verbs", "store_verbs", "cli"),
    ),
}
"""The order of the folders in each top-level package, the lowest floor first.

A folder imports only from itself and from lower floors. The same holds for files that are directly in the package.
Folders on the same floor do not import each other, except on the lowest and the highest floor.
"""
LIGHT = (
    "models.errors",
    "models.field_errors",
    "models.record",
    "models.atomic_write",
    "models.throttle",
    "models.structure",
    "models.data.allowed_path",
    "models.loading.model_files",
    "search.budgets",
    "search.methods",
    "search.policy",
    "search.token_rule",
    "vitfit.child",
    "vitfit.machine",
    "latency.devices",
    "latency.measuring.machine_lock",
)
"""Files, and folders with all their files, that need only the standard library and each other.

The web process or the measuring agent uses them.
"""
SCHEMAS = ("latency.devices.profile_schema",)
"""Modules for documents that users send.

The web process reads these documents too, so the modules need pydantic and nothing heavy.
"""
PIPELINE_SIDE = (
    "service.pipeline",
    "service.reports",
    "service.cluster",
    "service.cli",
    "service.token_verbs",
    "service.store_verbs",
)
"""The parts of the service that run in their own processes. The other parts serve requests and must stay light."""
HEAVY = frozenset(
    [
        "torch",
        "timm",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "numpy",
        "scipy",
        "sklearn",
        "skopt",
        "matplotlib",
        "accelerate",
        "ray",
    ]
)


@dataclass(frozen=True)
class Import:
    """One import. `names`: everything that the line may load, the longest name last."""

    importer: str
    line: int
    name: str
    submodules: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.name}"


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return all modules of vitfit by dotted name: the four top-level packages and the client."""
    found = {}
    for base, folder in [(root, room) for room in ROOMS] + [(root / "client", "vitfit")]:
        for path in sorted((base / folder).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path) -> list[Import]:
    """Return every import of a file, also lazy imports and `import_module("...")`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_imports_in(path.read_text(), module, package))


@cache
def _imports_in(text: str, module: str, package: str) -> tuple[Import, ...]:
    return tuple(_imports(ast.parse(text), module, package))


def _imports(tree: ast.AST, module: str, package: str) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield Import(module, node.lineno, base, tuple(f"{base}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from (
                Import(module, node.lineno, a.value)
                for a in node.args[:1]
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parent = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parent, *([node.module] if node.module else [])])


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def violations(root: Path = ROOT) -> list[str]:
    """Return one line for each import that breaks a rule."""
    known = modules(root)
    found = []
    for module, path in known.items():
        for item in imports_of(module, path):
            rule = _broken_rule(module, item, known)
            if rule:
                found.append(f"{item}: {rule}")
    return found


def _broken_rule(module: str, item: Import, known: dict[str, Path]) -> str | None:
    room = module.partition(".")[0]
    ours = [name for name in (*item.submodules, item.name) if name in known and not _is_bare_package(name, known)]
    if item.top in OURS and item.top not in MAY_IMPORT[room]:
        return f"{room} may import {', '.join(sorted(MAY_IMPORT[room]))} only"
    if is_light(module) and not (ours and all(map(is_light, ours))) and item.top not in sys.stdlib_module_names:
        return "it must stay with the standard library"
    if module in SCHEMAS and item.top in HEAVY:
        return "the web process must not need it"
    if upward := next((name for name in ours if _goes_up(module, name)), None):
        return f"{upward} stands on the same floor or above"
    if room != "service" or is_in(module, PIPELINE_SIDE):
        return None
    if item.top in HEAVY:
        return "the web process must not need it"
    if item.top in ("models", "search", "latency") and not all(is_light(name) or name in SCHEMAS for name in ours):
        return "only the pipeline's files know the rooms; here: " + ", ".join(LIGHT)
    if any(is_in(name, PIPELINE_SIDE) for name in ours) and module not in ("service.serve",):
        return "it would bring the pipeline into the web process"
    return None


def is_in(module: str, places: Iterable[str]) -> bool:
    """Return whether a module is one of these modules, or is in one of these folders."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def is_light(module: str) -> bool:
    return is_in(module, LIGHT) and module not in SCHEMAS


def floor_of(module: str) -> tuple[int, str] | None:
    """Return the floor of a module's folder in its top-level package, and that folder.

    The result is None for a module that is in no folder of `FLOORS`.
    """
    room, _, rest = module.partition(".")
    found = [(floor, folder) for floor, folders in enumerate(FLOORS.get(room, ())) for folder in folders]
    mine = [(floor, folder) for floor, folder in found if is_in(rest, [folder])]
    return max(mine, key=lambda place: len(place[1]), default=None)


def _goes_up(module: str, imported: str) -> bool:
    """Return whether an import leads to the same floor in another folder, or to a higher floor.

    Folders on the lowest floor, and on the highest floor, may import each other.
    """
    if module.partition(".")[0] != imported.partition(".")[0]:
        return False
    mine, other = floor_of(module), floor_of(imported)
    if mine is None or other is None or mine[1] == other[1]:
        return False
    top = len(FLOORS[module.partition(".")[0]]) - 1
    return other[0] > mine[0] or (other[0] == mine[0] and mine[0] not in (0, top))


def _is_bare_package(name: str, known: dict[str, Path]) -> bool:
    """Return whether a package holds only a docstring. Then only the file that is imported from it counts."""
    path = known[name]
    return path.name == "__init__.py" and len(ast.parse(path.read_text()).body) <= 1


def without_floor(known: Iterable[str]) -> list[str]:
    """Return the modules that have no floor in the table."""
    return [name for name in known if name.partition(".")[0] in ROOMS and "." in name and floor_of(name) is None]
