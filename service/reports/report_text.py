"""Say what a report found: the summary table, and the sentences below it."""

from collections.abc import Callable

from vitfit.report import Footprint, Latency, Precision, Report, Side

from service.reports.report_facts import AXES, OTHER_AXES

FOOTPRINT: tuple[tuple[str, Callable[[Footprint], str]], ...] = (
    ("loading and first run", lambda f: f"{f.load_ms:.0f} ms + {f.first_run_ms:.1f} ms"),
    ("peak memory", lambda f: f"{f.peak_mib:.0f} MiB"),
    ("slowest operators", lambda f: ", ".join(f"{o.operator} {100 * o.share:.0f} %" for o in f.operators[:3])),
)


ARITHMETIC = {
    7: "The weights of the int8 file have 7 bits, so its 8-bit products are exact on every processor.",
    8: "The weights of the int8 file have 8 bits. Its products are exact on this machine and on ARM processors. An x86 "
    "processor without VNNI loses the part of a sum that does not fit into 16 bits. For such a processor, set ONNX "
    "Runtime's session option session.x64quantprecision to 1, or run the job on such a machine. The job then makes "
    "7-bit weights.",
}
"""For each number of weight bits of an int8 file: on which processors its 8-bit products are exact."""


def headline(report: Report) -> list[tuple[str, str, str]]:
    """Return the rows (label, before, after) of the summary table."""
    before, after = report.original, report.delivered
    rows = [("accuracy", _accuracy(before), _accuracy(after))]
    if before.latency and after.latency:
        rows.append((f"latency, {report.setting}", _latency(before.latency), _latency(after.latency)))
    if before.footprint and after.footprint:
        rows += [(label, show(before.footprint), show(after.footprint)) for label, show in FOOTPRINT]
    rows += _precision_row(report.precision)
    rows.append(("MACs", f"{before.macs / 1e6:,.1f} M", f"{after.macs / 1e6:,.1f} M"))
    rows.append(("parameters", f"{before.params / 1e6:,.2f} M", f"{after.params / 1e6:,.2f} M"))
    rows.append(("ONNX file", f"{before.bytes / 1e6:,.2f} MB", f"{after.bytes / 1e6:,.2f} MB"))
    return rows


def _precision_row(found: Precision) -> list[tuple[str, str, str]]:
    """Return the row on precision, or no row if the network stays in fp32."""
    if found.name == "fp32":
        return []
    left = f", {len(found.exact)} of {found.layers} linear layers in fp32" if found.exact else ""
    bits = "" if found.weight_bits is None else f" ({found.weight_bits}-bit weights)"
    return [("precision", "fp32", f"{found.name}{bits}{left}")]


def _accuracy(side: Side) -> str:
    if side.correct is None or side.accuracy is None:
        return "not assessed"
    return f"{side.correct}/{side.images} = {100 * side.accuracy:.1f} %"


def _latency(latency: Latency) -> str:
    return f"{latency.p50_ms:.3f} ms ({latency.low_ms:.3f} to {latency.high_ms:.3f})"


def notes(report: Report) -> list[str]:
    """Return the sentences that are shown below the summary table."""
    lines = [f"Budget of {budget.text}: {budget.outcome}." for budget in report.budgets]
    ratio = report.ratio
    predicted = "" if ratio.predicted is None else f", predicted {ratio.predicted:.3f}"
    lines.append(
        "Measured latency divided by the original's: "
        f"{ratio.measured:.3f} ({ratio.low:.3f} to {ratio.high:.3f}){predicted}."
    )
    lines += _axes(report)
    lines += _quantised(report)
    if report.share_of_macs_fall is not None:
        lines.append(f"Fall of latency divided by fall of MACs, all axes together: {report.share_of_macs_fall:.2f}.")
    return lines + list(report.warnings)


def _axes(report: Report) -> list[str]:
    if not report.axes:
        return []
    alone = {row.axis: row.share for row in report.axes}
    shares = ", ".join(f"{axis} {_share(alone, axis)}" for axis in AXES + tuple(a for a in OTHER_AXES if a in alone))
    return [f"Fall of latency divided by fall of MACs, each axis pruned alone: {shares}."]


def _share(alone: dict[str, float | None], axis: str) -> str:
    """Return the share for pruning only this axis as text.

    The share is None if MACs hardly fell, because it would then be noise. The text says so.
    """
    if axis not in alone:
        return "(nothing removed)"
    share = alone[axis]
    return "(too little removed to tell)" if share is None else f"{share:.2f}"


def _quantised(report: Report) -> list[str]:
    lines = [
        f"Latency saved by {report.precision.name} alone, with nothing pruned: {100 * row.latency_fall:.0f} %."
        for row in report.axes
        if row.axis == "precision"
    ]
    if report.precision.weight_bits is not None:
        lines.append(ARITHMETIC[report.precision.weight_bits])
    found = report.parity.quantised
    if found is not None:
        lines.append(
            f"The {report.precision.name} file gives the same answers as its fake quantisation in PyTorch for "
            f"{100 * found.same_answers:.1f} % of {found.clear} test images. {found.images - found.clear} further "
            "images were left out, because rounding alone can change their answer. Parity within 1e-3 was checked "
            "before quantisation."
        )
    return lines
