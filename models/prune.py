"""`prune(model, plan)`: the smaller network, by slicing weights. Masks appear only in the tests that check this file."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.describe import head_count
from models.family import Family, is_present, part, replace_part
from models.plan import BlockPlan, Plan, TokenScore, check, selector_heads
from models.pruned import Gather, HeadNorm, PrunedAttention, PrunedBlock, PrunedBlocks, PrunedMlp
from models.reduction import TokenReduction, TokenWatch
from models.selector import TokenSelector
from models.structure import PACKAGING, Structure


def prune(model: nn.Module, family: Family, structure: Structure, plan: Plan) -> nn.Module:
    """A new model with what `plan` keeps; `model` is not touched.

    Raises: InvalidRequest when the plan does not fit.
    """
    check(plan, structure)
    small = copy.deepcopy(model)
    originals = list(part(small, family.blocks).children())
    blocks = _prune_blocks(originals, family, structure, plan)
    if len(plan.embed) < structure.width or plan.embed != tuple(range(structure.width)):
        _narrow_ends(small, family, plan.embed)
    pooling, last_norm = family.pooling(model), None
    if pooling != "token" and any(b.tokens is not None and b.tokens.reducer != "drop" for b in plan.blocks):
        last_norm = part(small, family.last_norm)
        replace_part(small, family.last_norm, nn.Identity())
    replace_part(small, family.blocks, PrunedBlocks(blocks, structure.prefix, pooling == "all", last_norm))
    return small.train(model.training)


def _prune_blocks(originals: list[nn.Module], family: Family, structure: Structure, plan: Plan) -> list[PrunedBlock]:
    patches, packaged, blocks = structure.tokens - structure.prefix, 0, []
    watching = watching_blocks(plan)
    by_class = structure.prefix > 0 and structure.has_class_token
    for place, wanted in enumerate(plan.blocks):
        watch, reduction, chosen = None, None, wanted.tokens
        attended = chosen.kept if chosen is not None and chosen.at == "start" else patches
        if place in watching:
            watch = TokenWatch(watching[place], structure.prefix, attended, by_class)
        if chosen is not None:
            selector = None
            if chosen.score == "selector":  # untrained: see models/selector_training.py
                heads = selector_heads(len(plan.embed), structure.blocks[wanted.source])
                selector = TokenSelector(len(plan.embed), heads, seed=wanted.source)
            reduction = TokenReduction(chosen, structure.prefix, patches, packaged, selector)
            packaged += patches - chosen.kept if chosen.reducer in PACKAGING else 0
            patches = chosen.kept
        blocks.append(
            _prune_block(originals[wanted.source], family, wanted, plan.embed, reduction, watch, structure.prefix)
        )
    return blocks


def watching_blocks(plan: Plan) -> dict[int, TokenScore]:
    """Places of the blocks whose attention a later choice reads, and what it reads."""
    watching: dict[int, TokenScore] = {}
    attended: list[int] = []
    for place, block in enumerate(plan.blocks):
        if block.heads and (block.tokens is None or block.tokens.at == "middle"):
            attended.append(place)
        if block.tokens is not None and block.tokens.score != "selector":
            read = attended if block.tokens.score == "cumulative" else attended[-1:]
            watching |= dict.fromkeys(read, block.tokens.score)
        if block.heads and block.tokens is not None and block.tokens.at == "start":
            attended.append(place)
    return watching


def _prune_block(
    block: nn.Module, family: Family, plan: BlockPlan, embed: Sequence[int], reduction: TokenReduction | None,
    watch: TokenWatch | None, prefix: int,
) -> PrunedBlock:  # fmt: skip
    attention = _attention(block, family, plan, embed) if plan.heads else None
    mlp = _mlp(block, family, plan, embed) if plan.neurons else None
    return PrunedBlock(
        narrow_norm(part(block, family.norm1), embed) if attention else None,
        attention,
        _after(block, family.layer_scale1, family.drop_paths[0], embed),
        reduction,
        narrow_norm(part(block, family.norm2), embed) if mlp else None,
        mlp,
        _after(block, family.layer_scale2, family.drop_paths[1], embed),
        watch,
        prefix,
    )


def _attention(block: nn.Module, family: Family, plan: BlockPlan, embed: Sequence[int]) -> PrunedAttention:
    qkv, projection = part(block, family.qkv), part(block, family.projection)
    assert isinstance(qkv, nn.Linear) and isinstance(projection, nn.Linear)
    width, qk = qkv.out_features // 3, [i for head in plan.heads for i in head.qk]
    v = [i for head in plan.heads for i in head.v]
    rows = qk + [width + i for i in qk] + [2 * width + i for i in v]
    inputs = embed if plan.qkv_inputs is None else plan.qkv_inputs
    outputs = v if plan.proj_inputs is None else list(plan.proj_inputs)
    owner, _, attribute = family.scale.rpartition(".")
    dim = width // head_count(block, family)
    return PrunedAttention(
        narrow_linear(qkv, rows, inputs),
        narrow_linear(projection, embed, outputs),
        (len(plan.heads), len(plan.heads[0].qk), len(plan.heads[0].v)),
        float(getattr(part(block, owner), attribute)),
        (_head_norm(part(block, family.q_norm), plan, dim), _head_norm(part(block, family.k_norm), plan, dim)),
        _gather(inputs, embed),
        _gather(outputs, v),
    )


def _head_norm(norm: nn.Module, plan: BlockPlan, dim: int) -> nn.Module:
    if not is_present(norm):
        return nn.Identity()
    assert isinstance(norm, nn.LayerNorm)
    index = torch.tensor([[i % dim for i in head.qk] for head in plan.heads])
    bias = norm.bias.detach()[index] if norm.bias is not None else None
    return HeadNorm(norm.weight.detach()[index], bias, norm.eps)


def _mlp(block: nn.Module, family: Family, plan: BlockPlan, embed: Sequence[int]) -> PrunedMlp:
    fc1, fc2 = part(block, family.fc1), part(block, family.fc2)
    assert isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear)
    inputs = embed if plan.fc1_inputs is None else plan.fc1_inputs
    return PrunedMlp(
        _gather(inputs, embed),
        narrow_linear(fc1, plan.neurons, inputs),
        copy.deepcopy(part(block, family.activation)),
        narrow_linear(fc2, embed, plan.neurons),
    )


def _gather(wanted: Sequence[int], present: Sequence[int]) -> nn.Module:
    if list(wanted) == list(present):
        return nn.Identity()
    place = {member: i for i, member in enumerate(present)}
    return Gather([place[member] for member in wanted])


def _after(block: nn.Module, scale: str, drop_path: str, embed: Sequence[int]) -> nn.Module:
    modules = [m for m in (part(block, scale), part(block, drop_path)) if is_present(m)]
    for module in modules:
        if hasattr(module, "gamma"):
            module.gamma = nn.Parameter(take(module.gamma, 0, embed))
    return nn.Sequential(*modules) if len(modules) > 1 else modules[0] if modules else nn.Identity()


def take(tensor: Tensor | nn.Module, dim: int, members: Sequence[int]) -> Tensor:
    """A detached copy of the members along one dim."""
    assert isinstance(tensor, Tensor)
    return tensor.detach().index_select(dim, torch.tensor(members, device=tensor.device)).clone()


def narrow_linear(linear: nn.Linear, rows: Sequence[int], columns: Sequence[int]) -> nn.Linear:
    """The linear layer with the given outputs (rows) and inputs (columns) of the original, in that order."""
    small = nn.Linear(len(columns), len(rows), bias=linear.bias is not None, device="meta")
    small.weight = nn.Parameter(take(take(linear.weight, 0, rows), 1, columns))
    if linear.bias is not None:
        small.bias = nn.Parameter(take(linear.bias, 0, rows))
    return small


def narrow_norm(norm: nn.Module, members: Sequence[int]) -> nn.Module:
    """The norm over the kept dims: its mean and variance are those of what is left."""
    if not is_present(norm):
        return norm
    small = copy.deepcopy(norm)
    assert isinstance(small, nn.LayerNorm)
    small.normalized_shape = (len(members),)
    small.weight = nn.Parameter(take(small.weight, 0, members))
    if small.bias is not None:
        small.bias = nn.Parameter(take(small.bias, 0, members))
    return small


def _narrow_ends(model: nn.Module, family: Family, embed: Sequence[int]) -> None:
    """Cuts the embedding width of everything outside the blocks, in place (on prune's own copy)."""
    conv = part(model, family.patch)
    assert isinstance(conv, nn.Conv2d)
    conv.out_channels = len(embed)
    conv.weight = nn.Parameter(take(conv.weight, 0, embed))
    if conv.bias is not None:
        conv.bias = nn.Parameter(take(conv.bias, 0, embed))
    for path in family.tables:
        table = getattr(model, path, None)
        if table is not None:
            setattr(model, path, nn.Parameter(take(table, 2, embed)))
    for path in (*family.stem_norms, family.last_norm, *family.tail_norms):
        replace_part(model, path, narrow_norm(part(model, path), embed))
    for path in family.classifiers:
        head = getattr(model, path, None)
        if isinstance(head, nn.Linear):
            setattr(model, path, narrow_linear(head, range(head.out_features), embed))
    for name in family.width_attributes:
        setattr(model, name, len(embed))
