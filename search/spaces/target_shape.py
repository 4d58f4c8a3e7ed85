"""Prunes a larger network to an exact regular shape: UP-ViTs' way to a DeiT-S or DeiT-T.

It follows arXiv 2111.15127, section 3.3.
Scores decide which embedding dims are removed, and which neurons in each block. The dims of neighbouring heads are
pooled, and the best of them stay, the same rows in q, k and v. So the target gets its heads x dims although the source
has more heads of the same size. If the target has fewer blocks, whole blocks are removed by the summed scores of their
sublayers, in each stage separately (PVTv2-B2 to B1). Where the embedding width cannot be cut, the target must have the
source's width in each stage.

In a network in rotated bases (models/rotation), no dims are pooled. The best heads stay with their leading dims, and
the stream keeps its leading dims.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from models.errors import InvalidRequest
from models.structure import Attention, BlockPlan, HeadPlan, Op, Plan, RotatedAxis, Stage, Structure
from search.ranking import Array, BlockRanking, Ranking
from search.spaces.best_members import best


class BlockScores(Protocol):
    """Scores of one block: attention dims (H, d), neurons (K,), sublayers (2,). A higher score means keep."""

    @property
    def dims(self) -> Array | None: ...
    @property
    def neurons(self) -> Array: ...
    @property
    def halves(self) -> Array | None: ...


@dataclasses.dataclass(frozen=True)
class NoScores:
    """Scores that treat all members alike."""

    dims: Array
    neurons: Array
    halves: Array


def regular_plan(structure: Structure, blocks: Sequence[BlockScores], embed: Array | None, target: Structure) -> Plan:
    """The plan that leaves exactly the target's shape. embed (D,): scores of the embedding dims.

    Raises: InvalidRequest when the target cannot be reached, or when a score that it needs is missing.
    """
    check_reachable(structure, target)
    no_embed = embed is None and "embed" not in structure.fixed
    if no_embed or any(block.dims is None or block.halves is None for block in blocks):
        raise InvalidRequest(
            "A target shape needs scores of embedding dims, attention dims and sublayers, but the criterion does not"
            " give all of them. Use criterion 'kl', 'kl-exact' or 'taylor'."
        )
    return _plan(structure, blocks, embed, target)


def rotated_plan(structure: Structure, ranking: Ranking, target: Structure) -> Plan:
    """The plan that leaves exactly the target's shape of a network in rotated bases.

    Raises: InvalidRequest when the target cannot be reached.
    """
    check_rotated_target(structure, ranking.rotated, target)
    sources = _sources(structure, ranking.blocks, target)
    plans = []
    for source, shape in zip(sources, target.blocks, strict=True):
        scores = ranking.blocks[source]
        assert shape.attention is not None and shape.mlp is not None
        plans.append(BlockPlan(source, leading_heads(scores, shape.attention), best(scores.neurons, shape.mlp.neurons)))
    return Plan(tuple(range(target.width)), tuple(plans), rotated=ranking.rotated)


def check_rotated_target(structure: Structure, rotated: Sequence[RotatedAxis], target: Structure) -> None:
    """Check that rotated bases lead to exactly this shape. Raises: InvalidRequest with the reason why not.

    rotated: the axes of the network that can be rotated.
    """
    check_reachable(structure, target)
    larger = max(a.v_dim for a in _attentions(target)) > min(a.v_dim for a in _attentions(structure))
    before = any(op.kind == "norm" for op in structure.stem)
    stages = len(structure.stages) > 1
    if "embed" not in rotated or larger or stages or before or not structure.classes:
        reason = f"the width of {structure.name} cannot be rotated"
        if stages:
            reason = "stages of a network in rotated bases get more layers"
        elif larger:
            reason = "its heads have more dims"
        elif before or not structure.classes:
            end = "a norm before its blocks" if before else "no classifier"
            reason = f"a model with {end} gets one more layer in rotated bases"
        raise InvalidRequest(
            f"Method 'joint' cannot prune {structure.name} to the shape of {target.name}, because {reason}. Use method"
            " 'up-vit'.",
            target=target.name,
        )


def leading_heads(scores: BlockRanking, wanted: Attention) -> tuple[HeadPlan, ...]:
    """The best heads, with the leading dims of each."""
    dim = scores.v.shape[1]
    first = [head * dim for head in best(scores.heads, wanted.heads)]
    return tuple(HeadPlan(tuple(range(i, i + wanted.qk_dim)), tuple(range(i, i + wanted.v_dim))) for i in first)


def check_reachable(structure: Structure, target: Structure) -> None:
    """Check that pruning `structure` can give exactly `target`. Raises: InvalidRequest with all reasons why not."""
    problems = _beyond_pruning(structure, target) + _too_large(structure, target)
    if not problems:
        embed = None if "embed" in structure.fixed else np.zeros(structure.width)
        left = _plan(structure, _alike(structure), embed, target).apply_to(structure)
        problems = _differences(left, target)
    if problems:
        raise InvalidRequest(
            f"vitfit cannot prune {structure.name} to the shape of {target.name}. Reasons: {'; '.join(problems)}."
            " Choose a smaller target of the same design and image size.",
            target=target.name,
            reasons=problems,
        )


def _plan(structure: Structure, blocks: Sequence[BlockScores], embed: Array | None, target: Structure) -> Plan:
    sources = _sources(structure, blocks, target)
    plans = []
    for source, shape in zip(sources, target.blocks, strict=True):
        scores = blocks[source]
        assert scores.dims is not None and shape.attention is not None and shape.mlp is not None
        heads = pooled_heads(scores.dims, shape.attention.heads, shape.attention.v_dim)
        plans.append(BlockPlan(source, heads, best(scores.neurons, shape.mlp.neurons)))
    return Plan(() if embed is None else best(embed, target.width), tuple(plans))


def _sources(structure: Structure, blocks: Sequence[BlockScores], target: Structure) -> list[int]:
    """The blocks that stay: in each stage as many as the target has, those whose sublayers score best."""
    worth = np.asarray([0.0 if block.halves is None else float(block.halves.sum()) for block in blocks])
    sources: list[int] = []
    for first, stage, wanted in zip(structure.first_blocks, structure.stages, target.stages, strict=True):
        sources += [first + i for i in best(worth[first : first + len(stage.blocks)], len(wanted.blocks))]
    return sources


def pooled_heads(dims: Array, heads: int, dim: int) -> tuple[HeadPlan, ...]:
    """`heads` heads of `dim` dims each. Each gets the best dims of its own group of neighbouring source heads.

    dims (H, d): scores of the source's attention dims.
    """
    plans = []
    for group in np.array_split(np.arange(len(dims)), heads):
        first = int(group[0]) * dims.shape[1]
        kept = tuple(first + i for i in best(dims[group].ravel(), dim))
        plans.append(HeadPlan(kept, kept))
    return tuple(plans)


def _alike(structure: Structure) -> list[NoScores]:
    scores = []
    for block in structure.blocks:
        assert block.attention is not None and block.mlp is not None
        dims = np.zeros((block.attention.heads, block.attention.v_dim))
        scores.append(NoScores(dims, np.zeros(block.mlp.neurons), np.zeros(2)))
    return scores


def _beyond_pruning(structure: Structure, target: Structure) -> list[str]:
    found = []
    for what, mine, wanted in (
        ("images", structure.image, target.image),
        ("classes", structure.classes, target.classes),
        ("class and register tokens", structure.prefix, target.prefix),
        ("stages", len(structure.stages), len(target.stages)),
    ):
        if mine != wanted:
            found.append(f"{what}: the network has {mine}, the target has {wanted}")
    for shape in (structure, target):
        if any(block.attention is None or block.mlp is None for block in shape.blocks):
            found.append(f"{shape.name} has a block without attention or MLP")
        elif any(a.qk_norm != "none" for a in _attentions(shape)):
            found.append(f"{shape.name} norms q and k with weights that its heads share")
    return found


def _too_large(structure: Structure, target: Structure) -> list[str]:
    """Sizes of the target that exceed those of `structure`, stage by stage. A network without stages counts as one."""
    found: list[str] = []
    if len(structure.stages) == len(target.stages):
        for number, pair in enumerate(zip(structure.stages, target.stages, strict=True)):
            where = f"stage {number} " if len(structure.stages) > 1 else "the network "
            found += [where + problem for problem in _stage_too_large(*pair, "embed" in structure.fixed)]
    return found


def _stage_too_large(stage: Stage, target: Stage, fixed_width: bool) -> list[str]:
    found: list[str] = []
    mine, wanted = _attentions(stage), _attentions(target)
    if not mine or not wanted:
        return found
    widths = stage.blocks[0].width, target.blocks[0].width
    if fixed_width and widths[0] != widths[1]:
        found.append(
            f"has {widths[0]} embedding dims, which this architecture cannot cut, but the target has {widths[1]}"
        )
    for what, most, needed in (
        ("embedding dims", *widths),
        ("blocks", len(stage.blocks), len(target.blocks)),
        ("heads", min(a.heads for a in mine), max(a.heads for a in wanted)),
        (
            "neurons",
            min(b.mlp.neurons for b in stage.blocks if b.mlp),
            max(b.mlp.neurons for b in target.blocks if b.mlp),
        ),
    ):
        if needed > most:
            found.append(f"has {most} {what}, but the target has {needed}")
    pooled = min(a.heads // max(b.heads, 1) * a.v_dim for a in mine for b in wanted)
    dim = max(a.v_dim for a in wanted)
    if not found and dim > pooled:
        found.append(
            f"has {pooled} dims in the neighbouring heads that become one head, but each head of the target has {dim}"
        )
    return found


def _attentions(shape: Structure | Stage) -> list[Attention]:
    return [block.attention for block in shape.blocks if block.attention is not None]


def _differences(left: Structure, target: Structure) -> list[str]:
    """Up to three differences between the operations that would be left and those of the target. Names do not count."""
    mine, wanted = list(left.ops()), list(target.ops())
    if [op.kind for op in mine] != [op.kind for op in wanted]:
        return [
            f"the designs differ: the pruned network has {len(mine)} operations, and the target has {len(wanted)}"
            " operations or other kinds of operations"
        ]
    pairs = zip(mine, wanted, strict=True)
    return [f"the pruned network has {_shown(a)}, the target has {_shown(b)}" for a, b in pairs if not _same(a, b)][:3]


def _same(a: Op, b: Op) -> bool:
    return dataclasses.replace(a, name="") == dataclasses.replace(b, name="")


def _shown(op: Op) -> str:
    return f"{op.name} {op.count} x {op.rows} x {op.inner} x {op.cols}{' with bias' if op.bias else ''}"
