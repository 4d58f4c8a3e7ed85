"""Describe which sizes of a rotated network with stages follow the width of which stage."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from models.families.family import Family, linear_part, part
from models.families.stream import Stream
from models.families.stream_parts import free_streams
from models.structure import Block, Op, Stage, Structure


@dataclass(frozen=True)
class _Width:
    """The size of an operation that follows the width of the stream number `stream`."""

    stream: int
    field: Literal["inner", "cols"]
    taps: int = 1


def with_free_widths(structure: Structure, model: nn.Module, family: Family) -> Structure:
    """Return the structure of a network in rotated bases, with all that follows from the widths of its stages."""
    streams = free_streams(model, family)
    number = {stream.stage: i for i, stream in enumerate(streams)}
    widths: dict[str, _Width] = {}
    for i, stream in enumerate(streams):
        widths |= _widths(model, stream, i)
    stages = []
    for stage in structure.stages:
        blocks = tuple(_block(block, model, family, widths) for block in stage.blocks)
        entry = tuple(_op(op, widths) for op in stage.entry)
        stages.append(dataclasses.replace(stage, blocks=blocks, entry=entry, stream=number.get(stage.name)))
    tail = tuple(_pooled(_op(op, widths), stages[-1]) for op in structure.tail)
    return dataclasses.replace(
        structure,
        stem=tuple(_op(op, widths) for op in structure.stem),
        stages=tuple(stages),
        tail=tail,
        fixed=tuple(axis for axis in structure.fixed if axis != "embed"),
    )


def _widths(model: nn.Module, stream: Stream, number: int) -> dict[str, _Width]:
    found = {path: _Width(number, "cols") for path in (*stream.writers, *stream.norms)}
    for path in stream.layers:
        layer = part(model, path)
        taps = layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else 1
        found[path] = _Width(number, "inner", taps)
    return found


def _op(op: Op, widths: Mapping[str, _Width], before: str = "") -> Op:
    """before: what the name of the operation has in front of its path."""
    width = widths.get(op.name.removeprefix(before))
    if width is None:
        return op
    return dataclasses.replace(op, width_field=width.field, stream=width.stream, taps=width.taps)


def _pooled(op: Op, last: Stage) -> Op:
    """Return an operation behind the blocks. The pooling of the last tokens has their width."""
    if op.kind != "pool" or last.stream is None:
        return op
    return dataclasses.replace(op, width_field="cols", stream=last.stream)


def _block(block: Block, model: nn.Module, family: Family, widths: Mapping[str, _Width]) -> Block:
    """Return a block with the widths of its key reduction, whose last layers keep the original width."""
    shape = block.attention
    if shape is None or not shape.reduction or f"{block.name}.{family.norm1}" not in widths:
        return block
    reduction = []
    for place, op in enumerate(shape.reduction):
        pools = op.kind == "pool" and not any(earlier.weights for earlier in shape.reduction[:place])
        reduction.append(dataclasses.replace(op, width_field="cols") if pools else _op(op, widths, f"{block.name}."))
    inputs = linear_part(model, f"{block.name}.{family.layer_of('k')}").in_features
    narrow = dataclasses.replace(shape, reduction=tuple(reduction), key_inputs=inputs)
    return dataclasses.replace(block, attention=narrow)
