"""Who imports whom, read from the syntax trees, and what the house says about it (shared/ARCHITECTURE.md)."""

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
        ("errors", "record", "atomic_write", "throttle"),
        ("structure", "data"),
        ("families",),
        ("statistics",),
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
        ("app", "serve", "token_verbs", "cli"),
    ),
}
"""The order of the folders in each room, from the ground up. A folder imports from itself and from lower floors only; so do
files that stand in the room itself. Folders on one floor do not know each other."""
LIGHT = (
    "models.errors",
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
"""Files, and folders with all that is in them, which need the standard library and each other only: the web process, or the
measuring agent, uses them."""
SCHEMAS = ("latency.devices.profile_schema",)
"""Of what users send, so the web process reads them too: pydantic, and nothing heavy."""
PIPELINE_SIDE = ("service.pipeline", "service.reports", "service.cluster", "service.cli", "service.token_verbs")
"""The parts of the service that run in processes of their own; the others serve requests and stay light."""
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
    """`names`: everything that the line may load, the longest last."""

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
    """All of our modules by dotted name: the four rooms and the client."""
    found = {}
    for base, folder in [(root, room) for room in ROOMS] + [(root / "client", "vitfit")]:
        for path in sorted((base / folder).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path) -> list[Import]:
    """Every import of a file, lazy ones and `import_module("...")` included."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_imports(ast.parse(path.read_text()), module, package))


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
    """What breaks a rule, one line each."""
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
    """Whether a module is one of these, or lies in one of these folders."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def is_light(module: str) -> bool:
    return is_in(module, LIGHT) and module not in SCHEMAS


def floor_of(module: str) -> tuple[int, str] | None:
    """The floor of a module's folder in its room, and that folder; None for what stands in no folder of `FLOORS`."""
    room, _, rest = module.partition(".")
    found = [(floor, folder) for floor, folders in enumerate(FLOORS.get(room, ())) for folder in folders]
    mine = [(floor, folder) for floor, folder in found if is_in(rest, [folder])]
    return max(mine, key=lambda place: len(place[1]), default=None)


def _goes_up(module: str, imported: str) -> bool:
    """Whether an import leads to the same floor in another folder, or above. Files on the ground floor know each other."""
    if module.partition(".")[0] != imported.partition(".")[0]:
        return False
    mine, other = floor_of(module), floor_of(imported)
    if mine is None or other is None or mine[1] == other[1]:
        return False
    top = len(FLOORS[module.partition(".")[0]]) - 1
    return other[0] > mine[0] or (other[0] == mine[0] and mine[0] not in (0, top))


def _is_bare_package(name: str, known: dict[str, Path]) -> bool:
    """A package that holds a docstring only: what counts is the file that is imported from it."""
    path = known[name]
    return path.name == "__init__.py" and len(ast.parse(path.read_text()).body) <= 1


def without_floor(known: Iterable[str]) -> list[str]:
    """Modules that the table of floors does not place."""
    return [name for name in known if name.partition(".")[0] in ROOMS and "." in name and floor_of(name) is None]
