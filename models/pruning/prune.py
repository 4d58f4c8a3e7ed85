"""Builds the smaller network that a plan describes, by slicing weights.

Nothing is masked. Masks appear only in the tests that check this file.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from models.families.describe import head_count
from models.families.family import Family, block_lists, optional_part, part, replace_part
from models.pruning.narrow_stream import narrow_streams
from models.pruning.prune_layers import narrow_linear, take
from models.pruning.pruned_blocks import Gather, HeadNorm, PrunedAttention, PrunedBlock, PrunedBlocks, PrunedMlp
from models.pruning.relative_positions import RelativePositions
from models.pruning.slice_blocks import slice_blocks
from models.pruning.token_reduction import TokenReduction, TokenWatch
from models.pruning.token_selector import TokenSelector
from models.structure import PACKAGING, BlockPlan, Plan, Stage, Structure, TokenScore, check, selector_heads


def prune(model: nn.Module, family: Family, structure: Structure, plan: Plan) -> nn.Module:
    """Return a new model that holds only what `plan` keeps. `model` itself is not changed.

    Raises: InvalidRequest if the plan does not fit the structure.
    """
    check(plan, structure)
    small = copy.deepcopy(model)
    narrow_streams(small, family, structure, plan)
    first, new = 0, []
    embeds = plan.embed_of_stages(structure)
    for path, stage, embed in zip(block_lists(small, family), structure.stages, embeds, strict=True):
        originals = list(part(small, path).children())
        wanted = [p for p in plan.blocks if first <= p.source < first + len(stage.blocks)]
        if family.sliced and all(p.tokens is None for p in wanted):
            slice_blocks(small, path, family, originals, first=first, plans=wanted)
        else:
            made = _prune_blocks(originals, first, family, structure, stage=stage, plans=wanted, embed=embed)
            new.append((path, made, wanted))
        first += len(stage.blocks)
    for path, blocks, wanted in new:
        replace_part(small, path, _together(small, family, structure, blocks, plans=wanted))
    return small.train(model.training)


def _together(
    model: nn.Module, family: Family, structure: Structure, blocks: list[PrunedBlock], *, plans: list[BlockPlan]
) -> PrunedBlocks:
    """Join the blocks of one stage in one module.

    If the model pools its tokens and a plan fuses or merges tokens, the last norm moves from the model into this
    module.
    """
    pooling, last_norm = family.pooling(model), None
    if pooling != "token" and any(b.tokens is not None and b.tokens.reducer != "drop" for b in plans):
        last_norm = part(model, family.last_norm)
        replace_part(model, family.last_norm, nn.Identity())
    filled = family.grid_after and any(b.tokens is not None for b in plans)
    return PrunedBlocks(blocks, structure.prefix, pooling == "all", last_norm, filled=filled)


def _prune_blocks(
    originals: list[nn.Module],
    first: int,
    family: Family,
    structure: Structure,
    *,
    stage: Stage,
    plans: list[BlockPlan],
    embed: Sequence[int],
) -> list[PrunedBlock]:
    """Prune the blocks of one stage.

    first: index of the stage's first block in the network. embed: the embedding dims that its stream still has.
    """
    packaged, blocks, patches = 0, [], stage.blocks[0].tokens - structure.prefix
    watching = watching_blocks(plans)
    by_class = structure.prefix > 0 and structure.has_class_token
    for place, wanted in enumerate(plans):
        watch, reduction, chosen = None, None, wanted.tokens
        attended = chosen.kept if chosen is not None and chosen.at == "start" else patches
        if place in watching:
            watch = TokenWatch(watching[place], structure.prefix, attended, by_class)
        if chosen is not None:
            selector = None
            if chosen.score == "selector":  # random weights; models/training/train_selectors.py trains them
                heads = selector_heads(len(embed), stage.blocks[wanted.source - first])
                selector = TokenSelector(len(embed), heads, wanted.source)
            reduction = TokenReduction(chosen, structure.prefix, patches, packaged, selector=selector)
            packaged += patches - chosen.kept if chosen.reducer in PACKAGING else 0
            patches = chosen.kept
        original = originals[wanted.source - first]
        blocks.append(
            _prune_block(original, family, wanted, embed, reduction=reduction, watch=watch, prefix=structure.prefix)
        )
    return blocks


def watching_blocks(plans: Sequence[BlockPlan]) -> dict[int, TokenScore]:
    """Return the blocks of one stage whose attention a later token reduction reads.

    Maps the index of such a block in `plans` to the score that is computed from its attention.
    """
    watching: dict[int, TokenScore] = {}
    attended: list[int] = []
    for place, block in enumerate(plans):
        if block.heads and (block.tokens is None or block.tokens.at == "middle"):
            attended.append(place)
        if block.tokens is not None and block.tokens.score != "selector":
            read = attended if block.tokens.score == "cumulative" else attended[-1:]
            watching |= dict.fromkeys(read, block.tokens.score)
        if block.heads and block.tokens is not None and block.tokens.at == "start":
            attended.append(place)
    return watching


def _prune_block(
    block: nn.Module,
    family: Family,
    plan: BlockPlan,
    embed: Sequence[int],
    *,
    reduction: TokenReduction | None,
    watch: TokenWatch | None,
    prefix: int,
) -> PrunedBlock:
    """Prune a block whose residual stream is narrow already. embed: the dims of the original that the stream has."""
    attention = _attention(block, family, plan, embed) if plan.heads else None
    mlp = _mlp(block, family, plan, embed) if plan.neurons else None
    return PrunedBlock(
        part(block, family.norm1) if attention else None,
        attention,
        _after(block, family.layer_scale1, family.drop_paths[0]),
        reduction,
        norm2=part(block, family.norm2) if mlp else None,
        mlp=mlp,
        after2=_after(block, family.layer_scale2, family.drop_paths[1]),
        watch=watch,
        prefix=prefix,
        positions=_positions(block, family, plan) if attention else None,
    )


def _positions(block: nn.Module, family: Family, plan: BlockPlan) -> RelativePositions | None:
    """Return the relative position bias of the kept heads; None if the family has none."""
    if not family.position_index:
        return None
    ((table, dim),) = family.head_tables.items()
    heads = [head.v[0] // (len(head.v)) for head in plan.heads]
    return RelativePositions(take(block.get_parameter(table), dim, heads), block.get_buffer(family.position_index))


def _attention(block: nn.Module, family: Family, plan: BlockPlan, embed: Sequence[int]) -> PrunedAttention:
    qkv, projection = part(block, family.qkv), part(block, family.projection)
    assert isinstance(qkv, nn.Linear) and isinstance(projection, nn.Linear)
    width, v = qkv.out_features // 3, [i for head in plan.heads for i in head.v]
    inputs = _places(plan.qkv_inputs, embed)
    outputs = v if plan.proj_inputs is None else list(plan.proj_inputs)
    stream = range(len(embed))
    owner, _, attribute = family.scale.rpartition(".")
    dim = width // head_count(block, family)
    return PrunedAttention(
        narrow_linear(qkv, qkv_rows(plan, width), inputs),
        narrow_linear(projection, stream, outputs),
        (len(plan.heads), len(plan.heads[0].qk), len(plan.heads[0].v)),
        float(getattr(part(block, owner), attribute)),
        norms=(_head_norm(block, family.q_norm, plan, dim), _head_norm(block, family.k_norm, plan, dim)),
        inputs=_gather(inputs, stream),
        outputs=_gather(outputs, v),
    )


def qkv_rows(plan: BlockPlan, width: int, made: str = "qkv") -> list[int]:
    """Return the indices of the kept outputs of the joint q/k/v layer; q, k and v have `width` outputs each.

    made: the parts that are wanted, such as "kv".
    """
    qk = [i for head in plan.heads for i in head.qk]
    v = [i for head in plan.heads for i in head.v]
    rows = {"q": qk, "k": [width + i for i in qk], "v": [2 * width + i for i in v]}
    return [i for part_name in made for i in rows[part_name]]


def _head_norm(block: nn.Module, path: str, plan: BlockPlan, dim: int) -> nn.Module:
    norm = optional_part(block, path)
    if norm is None:
        return nn.Identity()
    assert isinstance(norm, nn.LayerNorm)
    index = torch.tensor([[i % dim for i in head.qk] for head in plan.heads])
    bias = norm.bias.detach()[index] if norm.bias is not None else None
    return HeadNorm(norm.weight.detach()[index], bias, norm.eps)


def _mlp(block: nn.Module, family: Family, plan: BlockPlan, embed: Sequence[int]) -> PrunedMlp:
    fc1, fc2 = part(block, family.fc1), part(block, family.fc2)
    assert isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear)
    inputs, stream = _places(plan.fc1_inputs, embed), range(len(embed))
    return PrunedMlp(
        _gather(inputs, stream),
        narrow_linear(fc1, plan.neurons, inputs),
        copy.deepcopy(part(block, family.activation)),
        narrow_linear(fc2, stream, plan.neurons),
    )


def _places(inputs: Sequence[int] | None, embed: Sequence[int]) -> Sequence[int]:
    """Return the places, in a stream with the dims `embed`, of what a layer reads. inputs: None if it reads all."""
    if inputs is None:
        return range(len(embed))
    place = {dim: i for i, dim in enumerate(embed)}
    return [place[dim] for dim in inputs]


def _gather(wanted: Sequence[int], present: Sequence[int]) -> nn.Module:
    if list(wanted) == list(present):
        return nn.Identity()
    place = {member: i for i, member in enumerate(present)}
    return Gather([place[member] for member in wanted])


def _after(block: nn.Module, scale: str, drop_path: str) -> nn.Module:
    modules = [m for m in (optional_part(block, scale), optional_part(block, drop_path)) if m is not None]
    return nn.Sequential(*modules) if len(modules) > 1 else modules[0] if modules else nn.Identity()
