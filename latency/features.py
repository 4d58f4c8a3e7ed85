"""A structure as sums over its operations: what a fitted latency model multiplies with."""

import functools
from collections.abc import Sequence

import numpy as np

from latency.pricer import Array
from models.structure import PACKAGING, Attention, Block, Mlp, Op, Reduction, Structure

PRIOR_NS = {
    "matmul_macs": 0.0087, "matmul_outputs": 0.02, "weight_values": 0.02, "conv_macs": 0.055,
    "attention_macs": 0.006, "heads": 500.0, "softmax_values": 1.0, "moved_values": 0.45,
    "norm_values": 0.6, "activation_values": 0.8, "other_values": 0.15, "gathered_values": 3.2,
    "operations": 900.0, "attentions": 2000.0, "reductions": 2000.0, "reduced_values": 0.7,
    "packages": 2500.0, "weighings": 10_000.0, "merges": 42_000.0, "merge_macs": 0.02,
}  # fmt: skip
"""Nanoseconds per unit on a core of a current server: where a fit starts, and what decides where samples are silent.

Columns of a product are computed in whole registers. A gather copies value by value, a reduction is a dozen small operations
whose number depends on its reducer. `moved_values`: q, k, v and the heads' outputs change their order in memory."""

FEATURES = tuple(PRIOR_NS)
LANES = 16
"""Values in a vector register."""


def features(structures: Sequence[Structure]) -> Array:
    """(S, F) for S structures, per image."""
    return np.stack([_structure_features(structure) for structure in structures])


def _structure_features(structure: Structure) -> Array:
    total = _ops_features(structure.stem) + _ops_features(structure.tail)
    for stage in structure.stages:
        for block in stage.blocks:
            total += _block_features(block)
        total += _ops_features(stage.entry)
        for branch in stage.branches:
            total += _ops_features(tuple(branch.ops()))
    return total


def _block_features(block: Block) -> Array:
    """The parts of a block by themselves and without its name: policies share most of them, and so do blocks of one policy."""
    width, scaled, precision = block.width, block.layer_scale, block.precision
    total = np.zeros(len(FEATURES))
    if block.attention is not None:
        total += _part_features(width, block.tokens_attended, block.attention, None, None, scaled, precision)
    if block.mlp is not None:
        total += _part_features(width, block.tokens_out, None, block.mlp, None, scaled, precision)
    if block.reduction is not None:
        total += _part_features(width, block.tokens, None, None, block.reduction, scaled, precision)
    return total


@functools.lru_cache(maxsize=262_144)
def _part_features(
    width: int, tokens: int, attention: Attention | None, mlp: Mlp | None, reduction: Reduction | None,
    layer_scale: bool, precision: str,
) -> Array:  # fmt: skip
    block = Block("", width, tokens, attention, mlp, reduction, layer_scale, precision)
    values = dict.fromkeys(FEATURES, 0.0)
    for op in block.ops():
        _count(op, values)
    if reduction is not None:
        values["reductions"] = 1.0
        values["reduced_values"] = (tokens + block.tokens_out) * width
        values["packages"] = reduction.reducer in PACKAGING
        values["weighings"] = reduction.reducer == "weighted"
        values["merges"] = reduction.reducer == "merge"
        values["merge_macs"] = tokens**2 * width if reduction.reducer == "merge" else 0.0
    return _row(values)


@functools.lru_cache(maxsize=4096)
def _ops_features(ops: tuple[Op, ...]) -> Array:
    values = dict.fromkeys(FEATURES, 0.0)
    for op in ops:
        _count(op, values)
    return _row(values)


def _count(op: Op, values: dict[str, float]) -> None:
    """Adds an operation to the features."""
    values["operations"] += 1.0
    if op.kind in ("matmul", "conv"):
        # channels of a grouped convolution share registers; products of a batch do not
        side_by_side, apart = (op.count, 1) if op.kind == "conv" else (1, op.count)
        macs = apart * op.rows * op.inner * _padded(op.cols * side_by_side)
        values["conv_macs" if op.kind == "conv" and op.count > 1 else "matmul_macs"] += macs
        values["matmul_outputs"] += op.values
        values["weight_values"] += op.params
    elif op.kind == "attention":
        scores, mixed = op.inner * _padded(op.cols), op.cols * _padded(op.depth)
        values["attention_macs"] += op.count * op.rows * (scores + mixed)
        values["heads"] += op.count
        values["softmax_values"] += op.count * op.rows * _padded(op.cols)
        values["moved_values"] += op.count * (op.rows + op.cols) * (op.inner + op.depth)
        values["attentions"] += 1.0
    elif op.kind in ("norm", "activation"):
        values[f"{op.kind}_values"] += op.values
    elif op.kind == "gather":
        values["gathered_values"] += op.values
    elif op.kind != "reduce":  # a reduction is counted with its block, which knows its reducer
        values["other_values"] += op.values


def _padded(cols: int) -> int:
    return -(-cols // LANES) * LANES


def _row(values: dict[str, float]) -> Array:
    return np.fromiter(values.values(), dtype=np.float64, count=len(FEATURES))
