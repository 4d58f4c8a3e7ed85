"""Who imports whom, read from the syntax trees, and what the house says about it (shared/ARCHITECTURE.md)."""

import ast
import sys
from collections.abc import Iterator
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
LIGHT = frozenset(
    [
        "models", "models.errors", "models.record", "models.structure", "models.plan", "models.whole_file",
        "search", "search.budgets", "search.methods", "search.policy", "search.token_rule",
        "vitfit.child", "vitfit.machine", "latency", "latency.devices", "latency.lease", "latency.mailbox", "latency.setting", "latency.profiles",
    ]
)  # fmt: skip
"""Standard library and each other only: the web process, or the measuring agent, uses them."""
SCHEMAS = frozenset(["latency.profile_schema"])
"""Of what users send, so the web process reads them too: pydantic, and nothing heavy."""
PIPELINE_SIDE = frozenset(
    f"service.{name}"
    for name in (
        "pipeline", "budgeting", "evaluation", "profiling", "verification", "delivery", "story", "report", "model_card", "patches",
        "compress", "measured_table", "validate", "cli", "token_verbs", "training", "dynamic", "precision",
        "scoring", "cluster", "cluster_task", "cluster_job", "dispatcher", "node",
    )
)  # fmt: skip
"""The files of the service that run in processes of their own; the others serve requests and stay light."""
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
    ours = [name for name in (*item.submodules, item.name) if name in known]
    if item.top in OURS and item.top not in MAY_IMPORT[room]:
        return f"{room} may import {', '.join(sorted(MAY_IMPORT[room]))} only"
    if module in LIGHT and not (ours and set(ours) <= LIGHT) and item.top not in sys.stdlib_module_names:
        return "it must stay with the standard library"
    if module in SCHEMAS and item.top in HEAVY:
        return "the web process must not need it"
    if room != "service" or module in PIPELINE_SIDE:
        return None
    if item.top in HEAVY:
        return "the web process must not need it"
    if item.top in ("models", "search", "latency") and not set(ours) <= LIGHT | SCHEMAS:
        return "only the pipeline's files know the rooms; here: " + ", ".join(sorted(LIGHT))
    if set(ours) & (PIPELINE_SIDE - {"service.cli", "service.token_verbs"}):
        return "it would bring the pipeline into the web process"
    return None
