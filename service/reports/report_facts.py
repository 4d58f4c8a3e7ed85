"""Build the parts of a job's report from structures, plans and measurements. Nothing here works with tensors."""

from collections.abc import Sequence

from vitfit.report import AxisShare, BlockSizes, Footprint, Latency, Precision, Side

from latency.measuring.sampling import Measurement
from models.structure import Block, Plan, PlanAxis, Structure

AXES: tuple[PlanAxis, ...] = ("heads", "neurons", "tokens")
OTHER_AXES: tuple[PlanAxis, ...] = ("inputs", "embed", "blocks")
"""Axes that are reported only if something was removed on them, because few methods prune them."""


def side(
    structure: Structure,
    *,
    file_bytes: int,
    correct: int | None,
    images: int,
    latency: Measurement | None,
    footprint: Footprint | None = None,
) -> Side:
    """Return the report's entry for one of the two networks, the original or the delivered one.

    correct: number of correctly classified test images; None if accuracy was not assessed.
    images: number of test images.
    """
    return Side(
        macs=structure.macs,
        params=structure.params,
        bytes=file_bytes,
        accuracy=None if correct is None else correct / images,
        correct=correct,
        images=images,
        latency=None if latency is None else milliseconds(latency),
        footprint=footprint,
    )


def milliseconds(measured: Measurement) -> Latency:
    """Return the median latency with its interval, and the 90th and 99th percentile of single runs, all in ms."""
    p50 = measured.p50_ms
    return Latency(
        p50_ms=p50.value,
        low_ms=p50.low,
        high_ms=p50.high,
        p90_ms=measured.percentile_ms(0.9),
        p99_ms=measured.percentile_ms(0.99),
    )


def block_sizes(original: Structure, plan: Plan) -> tuple[BlockSizes, ...]:
    """Return (kept, original) sizes for each block of the original. A removed block keeps 0 of every size."""
    kept = {p.source: b for p, b in zip(plan.blocks, plan.apply_to(original).blocks, strict=True)}
    return tuple(_block_sizes(block, kept.get(source)) for source, block in enumerate(original.blocks))


def _block_sizes(dense: Block, pruned: Block | None) -> BlockSizes:
    before = dense.attention
    after = pruned.attention if pruned else None
    return BlockSizes(
        name=dense.name,
        heads=(after.heads if after else 0, before.heads if before else 0),
        qk=(after.qk_dim if after else 0, before.qk_dim if before else 0),
        v=(after.v_dim if after else 0, before.v_dim if before else 0),
        neurons=(pruned.mlp.neurons if pruned and pruned.mlp else 0, dense.mlp.neurons if dense.mlp else 0),
        tokens=(pruned.tokens_out if pruned else 0, dense.tokens_out),
        inputs=(_inputs(pruned), _inputs(dense)),
    )


def _inputs(block: Block | None) -> int:
    """Return how many dims q/k/v, the projection and fc1 read in total."""
    attention, mlp = (block.attention, block.mlp) if block else (None, None)
    return (attention.inputs + attention.proj_inputs if attention else 0) + (mlp.inputs if mlp else 0)


def axis_share(axis: str, dense: Structure, pruned: Structure, latency_keep: float) -> AxisShare:
    """Compare the fall of latency with the fall of MACs when only one axis is pruned.

    The share is 1 if latency falls as much as MACs, and 0 if it does not fall at all. It is None if MACs fall by 0.5 %
    or less, because the share would then be noise.
    """
    macs_fall = 1 - pruned.macs / dense.macs
    latency_fall = 1 - latency_keep
    share = latency_fall / macs_fall if macs_fall > 0.005 else None
    return AxisShare(axis=axis, macs_fall=macs_fall, latency_fall=latency_fall, share=share)


def axes_of(plan: Plan, original: Structure) -> Sequence[PlanAxis]:
    """Return the axes on which this plan reduces the MACs, and "precision" if the plan is not fp32."""
    dense = original.macs
    axes: list[PlanAxis] = [a for a in (*AXES, *OTHER_AXES) if plan.only(a, original).apply_to(original).macs < dense]
    return axes if plan.precision == "fp32" else [*axes, "precision"]


def precision(plan: Plan, weight_bits: int) -> Precision:
    """Return the report's entry on number formats. weight_bits: bits of the weights of int8 layers."""
    sublayers = [(bool(block.heads), bool(block.neurons)) for block in plan.blocks]
    exact = tuple(
        f"{block.source}.{layer}"
        for block, (heads, neurons) in zip(plan.blocks, sublayers, strict=True)
        for layer in block.exact
        if (heads if layer in ("qkv", "proj") else neurons)
    )
    bits = weight_bits if plan.precision == "int8" else None
    return Precision(name=plan.precision, layers=2 * sum(map(sum, sublayers)), exact=exact, weight_bits=bits)
