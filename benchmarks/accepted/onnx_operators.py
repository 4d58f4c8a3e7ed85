"""Claim: docs/onnx.md says of every ONNX operator what vitfit does with it.

    python -m benchmarks.accepted.onnx_operators            prints the table
    python -m benchmarks.accepted.onnx_operators --write    writes it into docs/onnx.md

The list of operators is that of the installed onnx, up to the newest opset that vitfit reads.
"""

import argparse
from pathlib import Path

import onnx.defs

import models.graph.onnx.reader  # noqa: F401  it registers all operators
from models.graph.onnx.operators import OPERATORS
from models.graph.onnx.prepare import NEWEST, STANDARD, has_definition

DOCUMENT = Path(__file__).parents[2] / "docs" / "onnx.md"
BEGIN = "<!-- the table is written by python -m benchmarks.accepted.onnx_operators --write -->"
MEANINGS = {
    "translated": "vitfit has a translation.",
    "replaced": "onnx defines the operator by simpler ones. vitfit reads these.",
    "refused": "vitfit refuses a file in which the operator depends on the images. If all inputs are constant, ONNX"
    " Runtime computes the result beforehand.",
}


def operators() -> dict[str, list[str]]:
    """Return the names of all operators of the ONNX standard, by what vitfit does with them (`MEANINGS`)."""
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if _is_in(schema)}
    found: dict[str, list[str]] = {kind: [] for kind in MEANINGS}
    for name in sorted(names):
        known = "replaced" if has_definition(name, NEWEST) else "refused"
        found["translated" if name in OPERATORS else known].append(name)
    return found


def _is_in(schema: onnx.defs.OpSchema) -> bool:
    """Return whether the standard has this operator at the newest opset that vitfit reads."""
    try:
        onnx.defs.get_schema(schema.name, NEWEST)
    except onnx.defs.SchemaError:
        return False
    return schema.domain in STANDARD


def table() -> str:
    rows = [
        f"| {kind} | {MEANINGS[kind]} | {', '.join(f'`{name}`' for name in names)} |"
        for kind, names in operators().items()
    ]
    return "\n".join(["| | What vitfit does | Operators |", "|---|---|---|", *rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        before = DOCUMENT.read_text().split(BEGIN)[0]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table()}")
    else:
        print(table())


if __name__ == "__main__":
    main()
