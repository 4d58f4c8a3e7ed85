"""Build the parts of a job's report, and the table and sentences that are shown to people.

Input and output are plain JSON values and frozen records. Nothing in this file works with tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any

from latency.measuring.footprint import Footprint
from latency.measuring.sampling import Measurement
from models.structure import Block, Plan, PlanAxis, Structure

AXES: tuple[PlanAxis, ...] = ("heads", "neurons", "tokens")
OTHER_AXES: tuple[PlanAxis, ...] = ("inputs", "embed", "blocks")
"""Axes that are reported only if something was removed on them, because few methods prune them."""


FOOTPRINT: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("loading and first run", lambda f: f"{f['load_ms']:.0f} ms + {f['first_run_ms']:.1f} ms"),
    ("memory, at its peak", lambda f: f"{f['peak_mib']:.0f} MiB"),
    ("dearest operators", lambda f: ", ".join(f"{o['operator']} {100 * o['share']:.0f} %" for o in f["operators"][:3])),
)


ARITHMETIC = {
    7: "the int8 file's weights have 7 bits: its 8-bit products are exact on every processor",
    8: "the int8 file's weights have 8 bits: its products are exact on this machine and on ARM processors. x86 processors "
    "without VNNI lose what does not fit into 16 bits: there, set ONNX Runtime's session option "
    "session.x64quantprecision to 1, or run the job on such a machine, which makes 7-bit weights",
}
"""For each number of weight bits of an int8 file: on which processors its 8-bit products are exact."""


def side(
    structure: Structure,
    file_bytes: int,
    right: int | None,
    images: int,
    latency: Measurement | None,
    footprint: Footprint | None = None,
) -> dict[str, Any]:
    """Return the report's entry for one of the two networks, the original or the delivered one.

    right: number of correctly classified test images; None if accuracy was not assessed.
    images: number of test images.
    """
    return {
        "macs": structure.macs,
        "params": structure.params,
        "bytes": file_bytes,
        "accuracy": None if right is None else right / images,
        "correct": right,
        "images": images,
        "latency": None if latency is None else milliseconds(latency),
        "footprint": None if footprint is None else footprint.to_json(),
    }


def milliseconds(measured: Measurement) -> dict[str, float | None]:
    """Return the median latency with its interval, and the 90th and 99th percentile of single runs, all in ms.

    A percentile is None if there are too few runs for it (for p99: fewer than 1,000).
    """
    p50 = measured.p50_ms
    tails = {"p90_ms": measured.percentile_ms(0.9), "p99_ms": measured.percentile_ms(0.99)}
    return {"p50_ms": p50.value, "low_ms": p50.low, "high_ms": p50.high, **tails}


def removed(original: Structure, plan: Plan) -> list[dict[str, Any]]:
    """Return [kept, original] sizes for each block of the original. A removed block keeps 0 of every size."""
    kept = {p.source: b for p, b in zip(plan.blocks, plan.apply_to(original).blocks, strict=True)}
    rows = []
    for source, block in enumerate(original.blocks):
        mine = kept.get(source)
        attention = mine.attention if mine else None
        whole = block.attention
        rows.append(
            {
                "name": block.name,
                "heads": [attention.heads if attention else 0, whole.heads if whole else 0],
                "qk": [attention.qk_dim if attention else 0, whole.qk_dim if whole else 0],
                "v": [attention.v_dim if attention else 0, whole.v_dim if whole else 0],
                "neurons": [mine.mlp.neurons if mine and mine.mlp else 0, block.mlp.neurons if block.mlp else 0],
                "tokens": [mine.tokens_out if mine else 0, block.tokens_out],
                "inputs": [_inputs(mine), _inputs(block)],
            }
        )
    return rows


def _inputs(block: Block | None) -> int:
    """Return how many dims q/k/v, the projection and fc1 read in total."""
    attention, mlp = (block.attention, block.mlp) if block else (None, None)
    return (attention.inputs + attention.proj_inputs if attention else 0) + (mlp.inputs if mlp else 0)


def axis_share(axis: str, whole: Structure, part: Structure, latency_keep: float) -> dict[str, Any]:
    """Compare the fall of latency with the fall of MACs when only one axis is pruned.

    The share is 1 if latency falls as much as MACs, and 0 if it does not fall at all. It is None if MACs fall by 0.5 %
    or less, because the share would then be noise.
    """
    macs_fall = 1 - part.macs / whole.macs
    latency_fall = 1 - latency_keep
    share = latency_fall / macs_fall if macs_fall > 0.005 else None
    return {"axis": axis, "macs_fall": macs_fall, "latency_fall": latency_fall, "share": share}


def precision(plan: Plan, weight_bits: int) -> dict[str, Any]:
    """Return the report's entry on number formats. weight_bits: bits of the weights of int8 layers.

    In the result, `layers` is the number of linear layers that remain, and `exact` names those that stay in fp32, as
    "<block of the original>.<layer>".
    """
    halves = [(bool(block.heads), bool(block.neurons)) for block in plan.blocks]
    exact = [
        f"{block.source}.{layer}"
        for block, (heads, neurons) in zip(plan.blocks, halves, strict=True)
        for layer in block.exact
        if (heads if layer in ("qkv", "proj") else neurons)
    ]
    bits = weight_bits if plan.precision == "int8" else None
    return {"name": plan.precision, "layers": 2 * sum(map(sum, halves)), "exact": exact, "weight_bits": bits}


def headline(report: dict[str, Any]) -> list[list[str]]:
    """Return the rows [label, before, after] of the summary table."""
    before, after = report["original"], report["delivered"]
    rows = [["accuracy", _accuracy(before), _accuracy(after)]]
    if after["latency"]:
        rows.append([f"latency, {report['setting']}", _latency(before["latency"]), _latency(after["latency"])])
    if after["footprint"]:
        rows += [[label, *(show(side["footprint"]) for side in (before, after))] for label, show in FOOTPRINT]
    rows += _precision_row(report["precision"])
    rows.append(["MACs", f"{before['macs'] / 1e6:,.1f} M", f"{after['macs'] / 1e6:,.1f} M"])
    rows.append(["parameters", f"{before['params'] / 1e6:,.2f} M", f"{after['params'] / 1e6:,.2f} M"])
    rows.append(["ONNX file", f"{before['bytes'] / 1e6:,.2f} MB", f"{after['bytes'] / 1e6:,.2f} MB"])
    return rows


def _precision_row(found: dict[str, Any]) -> list[list[str]]:
    """Return the row on precision, or no row if the network stays in fp32."""
    if found["name"] == "fp32":
        return []
    left = f", {len(found['exact'])} of {found['layers']} linear layers in fp32" if found["exact"] else ""
    bits = "" if found["weight_bits"] is None else f" ({found['weight_bits']}-bit weights)"
    return [["precision", "fp32", f"{found['name']}{bits}{left}"]]


def _accuracy(side: dict[str, Any]) -> str:
    if side["correct"] is None:
        return "not assessed"
    return f"{side['correct']}/{side['images']} = {100 * side['accuracy']:.1f} %"


def _latency(latency: dict[str, float]) -> str:
    return f"{latency['p50_ms']:.3f} ms ({latency['low_ms']:.3f} to {latency['high_ms']:.3f})"


def notes(report: dict[str, Any]) -> list[str]:
    """Return the sentences that are shown below the summary table."""
    lines = [f"{b['text']}: {b['outcome']}" for b in report["budgets"]]
    ratio = report["ratio"]
    if ratio and ratio["measured"] is not None:
        predicted = "" if ratio["predicted"] is None else f", predicted {ratio['predicted']:.3f}"
        lines.append(
            f"measured latency over the original's: {ratio['measured']:.3f} "
            f"({ratio['low']:.3f} to {ratio['high']:.3f}){predicted}"
        )
    if report["axes"]:
        alone = {row["axis"]: row["share"] for row in report["axes"]}
        shares = ", ".join(
            f"{axis} {_share(alone, axis)}" for axis in AXES + tuple(a for a in OTHER_AXES if a in alone)
        )
        lines.append(f"fall of latency over fall of MACs, each axis alone: {shares}")
    lines += _quantised(report)
    if report["share_of_macs_fall"] is not None:
        lines.append(f"fall of latency over fall of MACs, all together: {report['share_of_macs_fall']:.2f}")
    return lines + list(report["warnings"])


def _quantised(report: dict[str, Any]) -> list[str]:
    lines = [
        f"latency saved by {report['precision']['name']} alone, nothing pruned: {100 * row['latency_fall']:.0f} %"
        for row in report["axes"]
        if row["axis"] == "precision"
    ]
    if (bits := report["precision"]["weight_bits"]) is not None:
        lines.append(ARITHMETIC[bits])
    found = report["parity"]["quantised"]
    if found is not None:
        lines.append(
            f"the {report['precision']['name']} file gives the answers of its emulation in PyTorch for {100 * found['same_answers']:.1f} % of "
            f"{found['clear']} test images ({found['images'] - found['clear']} left out, too near to call); parity within 1e-3 was checked before quantisation"
        )
    return lines


def _share(alone: dict[str, float | None], axis: str) -> str:
    """Return the share for pruning only this axis as text.

    If MACs fell by 0.5 % or less, the share would be noise and the text says so.
    """
    if axis not in alone:
        return "(nothing removed)"
    share = alone[axis]
    return "(too little removed to tell)" if share is None else f"{share:.2f}"


def axes_of(plan: Plan, original: Structure) -> Sequence[PlanAxis]:
    """Return the axes on which this plan reduces the MACs, and "precision" if the plan is not fp32."""
    whole = original.macs
    axes: list[PlanAxis] = [a for a in (*AXES, *OTHER_AXES) if plan.only(a, original).apply_to(original).macs < whole]
    return axes if plan.precision == "fp32" else [*axes, "precision"]
