"""Checks that a plan fits a structure, one function for each part of a plan.

Each check raises `InvalidRequest` that names the place, the value and what is allowed.
"""

import bisect

from models.errors import InvalidRequest
from models.structure.block import IN_GRAPH, LAYERS, PACKAGING, Block
from models.structure.block_plan import BlockPlan, HeadPlan, TokenPlan, whole_block
from models.structure.structure import Axis, Structure


def check_in_graph(tokens: TokenPlan, name: str) -> None:
    if tokens.at != "middle" or tokens.score != "attention" or tokens.reducer not in IN_GRAPH:
        raise InvalidRequest(
            f"{name}: tokens of a model that goes by its graph leave in the middle of a block, "
            "by its attention and by reducer "
            f"{', '.join(IN_GRAPH)}; not {tokens.reducer} at the {tokens.at} by {tokens.score}"
        )


def check_embed(embed: tuple[int, ...], structure: Structure) -> None:
    if "embed" not in structure.fixed:
        _check_members("embed", embed, structure.width, "the network")
    elif embed:
        widths = list(dict.fromkeys(block.width for block in structure.blocks))
        raise InvalidRequest(
            f"The embedding width of {structure.name} ({', '.join(map(str, widths))}) cannot be cut; leave embed empty"
        )


def check_fixed(plan: BlockPlan, block: Block, fixed: tuple[Axis, ...]) -> None:
    inputs = (plan.qkv_inputs, plan.proj_inputs, plan.fc1_inputs)
    if "inputs" in fixed and inputs != (None, None, None):
        raise InvalidRequest(f"{block.name}: inputs of single layers cannot be cut in this architecture")
    if "halves" in fixed and not (plan.heads and plan.neurons):
        raise InvalidRequest(f"{block.name}: attention or MLP alone cannot go in this architecture; drop the block")
    if block.attention is None or not ({"qk", "v"} & set(fixed)):
        return
    whole = {HeadPlan(h.qk, h.v) for h in whole_block(plan.source, block).heads}
    if not set(plan.heads) <= whole:
        raise InvalidRequest(
            f"{block.name}: only whole heads can go in this architecture, not dims inside heads "
            f"({block.attention.qk_dim} q/k and {block.attention.v_dim} v dims each)"
        )


def check_exact(plan: BlockPlan, name: str, precision: str) -> None:
    if plan.exact and precision != "int8":
        raise InvalidRequest(f"{name}: layers are left exact in an int8 plan only; this one is {precision}")
    if unknown := sorted(set(plan.exact) - set(LAYERS)):
        raise InvalidRequest(f"{name}: there is no layer {unknown[0]!r} to leave exact; there are {', '.join(LAYERS)}")


def check_block(plan: BlockPlan, block: Block, embed: tuple[int, ...], patches: int) -> int:
    """Check the plan of one block, and return the number of patch tokens that leave the block.

    embed: the embedding dims that the plan of the network keeps.
    """
    if plan.heads and block.attention:
        a = block.attention
        if len({(len(h.qk), len(h.v)) for h in plan.heads}) > 1:
            raise InvalidRequest(
                f"{block.name}: all heads of a block must keep the same number of dims (one fused product)"
            )
        for head in plan.heads:
            _check_members("q/k dim", head.qk, a.heads * a.qk_dim, block.name)
            _check_members("v dim", head.v, a.heads * a.v_dim, block.name)
        if plan.proj_inputs is not None:
            _check_subset("proj input", plan.proj_inputs, {i for h in plan.heads for i in h.v}, block.name)
    if plan.neurons and block.mlp:
        _check_members("neuron", plan.neurons, block.mlp.neurons, block.name)
    for label, inputs in (("q/k/v input", plan.qkv_inputs), ("fc1 input", plan.fc1_inputs)):
        if inputs is not None:
            _check_subset(label, inputs, set(embed) or set(range(block.width)), block.name)
    if plan.tokens is None:
        return patches
    if not 1 <= plan.tokens.kept < patches:
        raise InvalidRequest(
            f"{block.name}: a reduction can keep 1 to {patches - 1} patch tokens, not {plan.tokens.kept}"
        )
    if (plan.tokens.reducer == "merge") != (plan.tokens.score == "similarity"):
        raise InvalidRequest(f"{block.name}: reducer 'merge' goes with score 'similarity', the others with a rank")
    if plan.tokens.reducer == "merge" and block.attention is not None and block.attention.table:
        raise InvalidRequest(
            f"{block.name}: merged tokens have no place for its relative positions; use another reducer"
        )
    return plan.tokens.kept


def check_scores(blocks: tuple[BlockPlan, ...], firsts: tuple[int, ...] = (0,)) -> None:
    """Check that each token reduction has an attention to rank by, and that scores and reducers can be combined.

    A fused token and merged tokens count the removed tokens in different ways, so one plan cannot use both.
    """
    scored, stage = False, -1
    for block in blocks:
        tokens = block.tokens
        if (now := bisect.bisect(firsts, block.source)) != stage:
            scored, stage = False, now  # a new stage has new tokens, so earlier attention cannot rank them
        if tokens is not None and tokens.score == "selector":
            continue  # a selector reads the tokens, so it needs no attention
        at = None if tokens is None else tokens.at
        # Only the cumulative score, a sum over layers, stays valid after a reduction.
        spent = tokens is not None and tokens.score != "cumulative"
        if at == "start":
            if not scored:
                raise InvalidRequest(
                    f"Block {block.source} cannot choose tokens at its start: no attention before it "
                    "that was not used up by an earlier choice; choose in its middle, or by the cumulative score"
                )
            scored = not spent
        scored = scored or bool(block.heads)
        if at == "middle":
            if not block.heads:
                raise InvalidRequest(f"Block {block.source} cannot choose tokens: its attention is removed")
            scored = not spent
    if len({block.tokens.score for block in blocks if block.tokens is not None}) > 1:
        raise InvalidRequest("All token reductions of a plan must use the same score")
    reducers = {block.tokens.reducer for block in blocks if block.tokens is not None}
    if "merge" in reducers and reducers & set(PACKAGING):
        raise InvalidRequest("Reducer 'merge' cannot be mixed with a package token (fuse, weighted) in one plan")


def _check_members(noun: str, members: tuple[int, ...], size: int, where: str) -> None:
    if not members:
        raise InvalidRequest(f"{where}: a plan must keep at least one {noun}")
    if len(set(members)) != len(members) or min(members) < 0 or max(members) >= size:
        raise InvalidRequest(f"{where}: {noun} indices must be distinct and below {size}")


def _check_subset(noun: str, members: tuple[int, ...], allowed: set[int], where: str) -> None:
    if not members or len(set(members)) != len(members) or not set(members) <= allowed:
        raise InvalidRequest(
            f"{where}: {noun} indices must be distinct, at least one, and among those that the plan keeps"
        )
