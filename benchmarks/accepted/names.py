"""Claim: vitfit accepts most of timm's transformers, and gives a reason for each one that it refuses.

    python -m benchmarks.accepted.names                              shapes only, all names: about 5 s each
    python -m benchmarks.accepted.names --whole deit_tiny_patch16_224 levit_128s
    python -m benchmarks.accepted.names --table                      prints the rows that are stored already

The script tries each name in a process of its own. It builds the model at its own image size, describes it, and prunes
its heads and neurons to 0.7. It also prunes the tokens to 0.7 if the token grid may shrink. The MACs before and after
must be half of the FLOPs that torch counts, because one MAC is two FLOPs. The number of parameters must be that of the
model. This check needs no weights.

With `--whole`, the script makes the same check with random weights. It then runs the network forward and backward,
exports it, and compares ONNX Runtime with PyTorch (tolerance 1e-3). It builds models above 1 GiB with two blocks only.
The script does not try finished names again.
"""

import argparse
import collections
import itertools
from pathlib import Path
from typing import Any

import timm

from benchmarks.accepted.rows import in_a_process, store_row, stored_rows
from benchmarks.machine import machine

MODULES = [
    "vision_transformer",
    "deit",
    "eva",
    "beit",
    "cait",
    "vision_transformer_relpos",
    "vision_transformer_hybrid",
    "naflexvit",
    "vision_transformer_sam",
    "vitamin",
    "pit",
    "pvt_v2",
    "swin_transformer",
    "swin_transformer_v2",
    "swin_transformer_v2_cr",
    "twins",
    "xcit",
    "convit",
    "crossvit",
    "tnt",
    "nest",
    "mvitv2",
    "hiera",
    "davit",
    "gcvit",
    "levit",
    "volo",
    "visformer",
    "coat",
    "maxxvit",
    "mobilevit",
    "tiny_vit",
]
"""Files of timm that define networks of softmax attention and MLPs."""
SECONDS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--memory", type=int, default=12, help="GiB of one process")
    parser.add_argument("--output", type=Path, default=Path("build/names"))
    options = parser.parse_args()
    stored = options.output / ("whole.jsonl" if options.whole else "shapes.jsonl")
    stored.parent.mkdir(parents=True, exist_ok=True)
    if not options.table:
        by_turns = itertools.zip_longest(*(timm.list_models(module=module) for module in MODULES))
        names = options.names or [name for some in by_turns for name in some if name]
        done = {row["name"] for row in stored_rows(stored)}
        for name in names:
            if name not in done:
                store_row(stored, _one(name, options.whole, options.memory << 30))
    print(table(stored_rows(stored)))


def _one(name: str, whole: bool, memory: int) -> dict[str, Any]:
    """Try one name in a process of its own. Return its row, or a row that says why the process failed."""
    preload = ["benchmarks.accepted.one_name"]
    found = in_a_process(_row_of, name, whole, preload=preload, seconds=SECONDS, memory=memory)
    return {"name": name, "works": False, "reasons": [found]} if isinstance(found, str) else found


def _row_of(name: str, whole: bool) -> dict[str, Any]:
    from benchmarks.accepted.one_name import row_of

    return row_of(name, whole)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| timm's file | names | work | tokens too | refused, by first reason |", "|---|---|---|---|---|"]
    module_of = {name: module for module in MODULES for name in timm.list_models(module=module)}
    for module in MODULES:
        mine = [row for row in rows if module_of.get(row["name"]) == module]
        if mine:
            reasons = collections.Counter(row["reasons"][0] for row in mine if not row["works"])
            why = "; ".join(f"{number}: {reason}" for reason, number in reasons.most_common())
            tokens = sum(row["works"] and row.get("tokens", 0) > 0 for row in mine)
            lines.append(f"| {module} | {len(mine)} | {sum(row['works'] for row in mine)} | {tokens or ''} | {why} |")
    works = sum(row["works"] for row in rows)
    summary = f"{works} of {len(rows)} names work ({100 * works / max(1, len(rows)):.1f} %)."
    return "\n".join([*lines, "", summary, ", ".join(machine().values())])


if __name__ == "__main__":
    main()
