"""A structure as sums over its operations: what a fitted latency model multiplies with."""

import functools
from collections.abc import Sequence

import numpy as np

from latency.pricer import Array
from models.structure import Block, Op, Structure

FEATURES = (
    "matmul_macs", "matmul_outputs", "weight_values", "attention_macs", "softmax_values",
    "norm_values", "activation_values", "other_values", "operations",
)  # fmt: skip

PRIOR_NS = (0.03, 0.3, 0.05, 0.04, 1.0, 0.5, 1.5, 0.5, 3000.0)
"""Nanoseconds per unit on a core of a current server: where a fit starts, and what decides where samples are silent."""

LANES = 16
"""Values in a vector register: the columns of a product are computed in whole registers."""


def features(structures: Sequence[Structure]) -> Array:
    """(S, F) for S structures, per image."""
    return np.stack([_structure_features(structure) for structure in structures])


def _structure_features(structure: Structure) -> Array:
    total = np.zeros(len(FEATURES))
    total += _ops_features(structure.stem)
    for stage in structure.stages:
        for block in stage.blocks:
            total += _block_features(block)
        if stage.entry or stage.branches:
            total += sum(_op_features(op) for op in stage.ops()) - sum(_block_features(b) for b in stage.blocks)
    return total + _ops_features(structure.tail)


@functools.lru_cache(maxsize=65536)
def _block_features(block: Block) -> Array:
    """Cached by value: policies share most of their blocks."""
    return _ops_features(block.ops())


def _ops_features(ops: tuple[Op, ...]) -> Array:
    total = np.zeros(len(FEATURES))
    for op in ops:
        total += _op_features(op)
    return total


def _op_features(op: Op) -> Array:
    values = dict.fromkeys(FEATURES, 0.0)
    values["operations"] = 1.0
    if op.kind in ("matmul", "conv"):
        # channels of a grouped convolution share registers; products of a batch do not
        side_by_side, apart = (op.count, 1) if op.kind == "conv" else (1, op.count)
        cols = -(-op.cols * side_by_side // LANES) * LANES
        values["matmul_macs"] = apart * op.rows * op.inner * cols
        values["matmul_outputs"] = op.values
        values["weight_values"] = op.params
    elif op.kind == "attention":
        values["attention_macs"] = op.macs
        values["softmax_values"] = op.values
        values["operations"] = 3.0
    elif op.kind in ("norm", "activation"):
        values[f"{op.kind}_values"] = op.values
    elif op.kind == "reduce":
        values["other_values"] = (op.rows + op.inner) * op.cols
        values["operations"] = 6.0
    else:
        values["other_values"] = op.values
    return np.fromiter(values.values(), dtype=np.float64, count=len(FEATURES))
