"""Features of a structure: sums over its operations, which a fitted latency model multiplies by its coefficients."""

import dataclasses
import operator
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, TypeGuard, cast

import numpy as np

from latency.prediction.pricer import Array
from models.structure import PACKAGING, Attention, Block, Layer, Mlp, Op, Reduction, Structure, block_ops

PRIOR_NS = {
    "matmul_macs": 0.0087, "matmul_outputs": 0.015, "weight_values": 0.005, "rare_weights": 0.01,
    "spilled_weights": 0.2, "conv_macs": 0.05, "attention_macs": 0.004, "heads": 500.0, "softmax_values": 0.7,
    "moved_values": 0.45,
    "norm_values": 0.3, "activation_values": 0.4, "other_values": 0.1, "gathered_values": 2.4,
    "operations": 700.0, "attentions": 1600.0, "reductions": 4500.0, "reduced_values": 0.6,
    "packages": 2500.0, "weighings": 10_000.0, "merges": 35_000.0, "merge_macs": 0.017,
    "int8_macs": 0.0025, "int8_outputs": 0.04, "int8_weights": 0.004, "quantised_values": 0.15, "int8_products": 700.0,
    "half_macs": 0.0045, "half_values": 0.2, "half_weights": 0.0025,
    "plain_attentions": 5000.0, "plain_moved_values": 0.2,
}  # fmt: skip
"""Nanoseconds per unit of each feature on one core of a current server. A fit starts from these costs, and they decide
where samples say nothing.

The columns of a product are computed in whole registers. A gather copies value by value. A token reduction is a dozen
small operations, whose number depends on its reducer. `packages`: reductions that make a fused token. `moved_values`:
values of q, k, v and the heads' outputs, whose order in memory changes. `spilled_weights`: weights that no cache holds
until the next run. int8: products with int8 weights; `quantised_values` are their inputs. half: operations of any kind
in fp16. plain: the attentions of networks with int8 products, which are not one fused operator."""

FEATURES = tuple(PRIOR_NS)
WEIGHTS, INT8_WEIGHTS, SPILLED = (FEATURES.index(name) for name in ("weight_values", "int8_weights", "spilled_weights"))
LANES, ROWS = 16, 6
"""Values in one vector register; rows that the kernel of a product processes at a time."""
FEW_ROWS = 64
"""A product with fewer rows than this waits for its weights to be loaded."""
CACHED = 5e6
"""Number of fp32 weights at which a network's next run gets half of them from a shared cache, half from memory."""


BlockPart = tuple[int, int, Attention | Mlp | Reduction, bool, str, tuple[Layer, ...]]
Part = BlockPart | tuple[Op, ...]
"""One part of a network. Either a part of a block: width, tokens, the part itself, layer scale, precision, layers left
in fp32; or operations outside the blocks. Parts of blocks have no names, because policies share most parts, and so do
the blocks of one policy."""
KNOWN = 262_144
"""Number of remembered parts above which all of them are forgotten."""
_known: dict[Part, Array] = {}


def features(structures: Sequence[Structure]) -> Array:
    """(S, F): the F features of S structures, per image."""
    parts = [list(_parts(structure)) for structure in structures]
    if len(_known) > KNOWN:
        _known.clear()
    _learn({part for of_one in parts for part in of_one if part not in _known})
    rows = np.stack([np.sum([_known[part] for part in of_one], axis=0) for of_one in parts])
    weights = rows[:, WEIGHTS] + rows[:, INT8_WEIGHTS] / 4
    rows[:, SPILLED] = weights**2 / (weights + CACHED)
    return rows


def _parts(structure: Structure) -> Iterator[Part]:
    yield structure.stem
    yield structure.tail
    for stage in structure.stages:
        for block in stage.blocks:
            rest = block.layer_scale, block.precision, block.exact
            if block.attention is not None:
                yield (block.width, block.tokens_attended, block.attention, *rest)
            if block.mlp is not None:
                yield (block.width, block.tokens_out, block.mlp, *rest)
            if block.reduction is not None:
                yield (block.width, block.tokens, block.reduction, *rest)
        if stage.entry:
            yield stage.entry
        for branch in stage.branches:
            yield tuple(branch.ops())


def _learn(parts: set[Part]) -> None:
    """Compute and remember the features of parts. Parts that differ only in their sizes are computed together, with
    arrays in place of the sizes."""
    alike: dict[Hashable, list[Part]] = {}
    for part in parts:
        alike.setdefault(_kind(part), []).append(part)
    for group in alike.values():
        _known.update(zip(group, _rows(group), strict=True))


def _kind(part: Part) -> Hashable:
    """A key that is equal for parts whose operations differ only in their sizes."""
    if not _is_block(part):
        return part
    width, _, shape, *rest = part
    fixed = FIXED[type(shape)](shape)
    questions: tuple[int, ...] = ()
    if isinstance(shape, Attention):
        questions = shape.inputs < width, shape.proj_inputs < shape.heads * shape.v_dim
    elif isinstance(shape, Mlp):
        questions = (shape.inputs < width,)
    elif shape.selector is not None:
        questions = (width,)  # a selector's sizes do not follow from it by arithmetic alone
    return type(shape), fixed, questions, *rest


SIZES: dict[type[Any], tuple[str, ...]] = {
    Attention: ("heads", "qk_dim", "v_dim", "inputs", "proj_inputs"),
    Mlp: ("inputs", "neurons"),
    Reduction: ("kept", "prefix"),
}


FIXED = {
    kind: operator.attrgetter(*(field.name for field in dataclasses.fields(kind) if field.name not in sizes))
    for kind, sizes in SIZES.items()
}


class Column(np.ndarray[Any, Any]):
    """One size of many parts of one kind. A comparison has the same answer for all of them, so it gives one boolean."""

    def __bool__(self) -> bool:
        return bool(np.asarray(self).all())


def _rows(group: list[Part]) -> Array:
    """(parts, F): the features of parts of the same kind."""
    first, values = group[0], dict.fromkeys(FEATURES, cast(Any, 0.0))
    if not _is_block(first):
        ops = cast(tuple[Op, ...], first)
    else:
        names = SIZES[type(first[2])]
        width, tokens, *columns = _columns(group, names)
        shape = dataclasses.replace(first[2], **dict(zip(names, columns, strict=True)))
        ops = block_ops(_block_of(width, tokens, shape, *first[3:]))
        if isinstance(shape, Reduction):
            _count_reduction(shape, width, tokens, values)
        elif isinstance(shape, Attention) and first[4] == "int8":
            values["plain_attentions"] = 1.0
            values["plain_moved_values"] = shape.heads * tokens * 2 * (shape.qk_dim + shape.v_dim)
        elif isinstance(shape, Attention) and first[4] == "fp32":
            values["matmul_macs"] += _padding_of_heads(shape, tokens)
    for op in ops:
        _count(op, values)
    rows = np.empty((len(group), len(FEATURES)))
    for column, value in enumerate(values.values()):
        rows[:, column] = value
    return rows


def _columns(group: list[Part], names: tuple[str, ...]) -> list[Any]:
    """Width, tokens and the sizes in `names`: arrays over the parts, but for a single part numbers (quicker)."""
    sizes = [(part[0], part[1], *(getattr(part[2], name) for name in names)) for part in group]
    return list(sizes[0]) if len(sizes) == 1 else list(np.asarray(sizes, dtype=np.int64).T.view(Column))


def _is_block(part: Part) -> TypeGuard[BlockPart]:
    return len(part) == 6 and isinstance(part[0], int)


def _block_of(  # noqa: PLR0917  called with a tuple of its arguments
    width: Any, tokens: Any, shape: Any, layer_scale: bool, precision: str, exact: tuple[Layer, ...]
) -> Block:
    names = {Attention: "attention", Mlp: "mlp", Reduction: "reduction"}
    parts: dict[str, Any] = {"attention": None, "mlp": None, names[type(shape)]: shape}
    return Block("", width, tokens, **parts, layer_scale=layer_scale, precision=precision, exact=exact)


def _padding_of_heads(shape: Attention, tokens: Any) -> Any:
    """Extra MACs from padding if the runtime's attention operator computes q, k and v: then each head is a product of
    its own (models/export/inference_blocks.py)."""
    if shape.layers != ("qkv",) or shape.qk_norm != "none":
        return 0
    joined = _padded(shape.heads * (2 * shape.qk_dim + shape.v_dim))
    apart = shape.heads * (2 * _padded(shape.qk_dim) + _padded(shape.v_dim))
    return _padded(tokens, ROWS) * shape.inputs * (apart - joined)


def _count_reduction(shape: Reduction, width: Any, tokens: Any, values: dict[str, Any]) -> None:
    merges = shape.reducer == "merge"
    values["reductions"] = 1.0
    values["reduced_values"] = (tokens + shape.tokens_out) * width
    values["packages"] = float(shape.reducer in PACKAGING)
    values["weighings"] = float(shape.reducer == "weighted")
    values["merges"] = float(merges)
    values["merge_macs"] = tokens**2 * width if merges else 0.0


def _count(op: Op, values: dict[str, Any]) -> None:
    """Add one operation to the features."""
    values["operations"] += 1.0
    if op.precision == "fp16":
        values["half_macs"] += op.macs
        values["half_values"] += op.values
        values["half_weights"] += op.params
        return
    if op.precision == "int8":  # only products are int8
        values["int8_products"] += 1.0
        values["int8_macs"] += op.count * _padded(op.rows, ROWS) * op.inner * _padded(op.cols)
        values["int8_outputs"] += op.values
        values["int8_weights"] += op.params
        values["quantised_values"] += op.count * op.rows * op.inner
    elif op.kind in ("matmul", "conv"):
        # channels of a grouped convolution share registers; products of a batch do not
        side_by_side, apart = (op.count, 1) if op.kind == "conv" else (1, op.count)
        macs = apart * _padded(op.rows, ROWS) * op.inner * _padded(op.cols * side_by_side)
        values["conv_macs" if op.kind == "conv" and op.count > 1 else "matmul_macs"] += macs
        values["matmul_outputs"] += op.values
        values["weight_values"] += op.params
        values["rare_weights"] += op.params * FEW_ROWS / (op.rows + FEW_ROWS)
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


def _padded(size: Any, multiple: int = LANES) -> Any:
    return -(-size // multiple) * multiple
