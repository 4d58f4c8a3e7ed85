"""Checks that a plan fits a structure, one function for each part of a plan.

Each check raises `InvalidRequest` that names the place, the value and what is allowed.
"""

import bisect
from collections.abc import Sequence

from models.errors import InvalidRequest
from models.structure.block import IN_GRAPH, LAYERS, PACKAGING, Block
from models.structure.block_plan import BlockPlan, TokenPlan, whole_block
from models.structure.structure import Axis, Structure


def check_in_graph(tokens: TokenPlan, name: str) -> None:
    if tokens.at != "middle" or tokens.score != "attention" or tokens.reducer not in IN_GRAPH:
        raise InvalidRequest(
            f"{name}: the plan removes tokens at the {tokens.at} of the block with score {tokens.score!r} and reducer"
            f" {tokens.reducer!r}. A graph model allows only the middle of a block, score 'attention' and one of these"
            f" reducers: {', '.join(IN_GRAPH)}. Change the plan."
        )


def check_embed(embed: tuple[int, ...], structure: Structure) -> None:
    dims = structure.stream_dims
    if structure.has_widths_of_stages:
        if embed:  # a plan from before stages had widths of their own names no dims, and keeps all of them
            _check_members("embedding dim", embed, dims[-1].stop, "the network")
        for mine in dims if embed else ():
            if not any(dim in mine for dim in embed):
                raise InvalidRequest(
                    f"The plan keeps none of the embedding dims {mine.start} to {mine.stop - 1}, which are those of one"
                    " stage. It must keep at least one dim of each stage. Add one."
                )
    elif dims:
        _check_members("embedding dim", embed, structure.width, "the network")
    elif embed:
        widths = list(dict.fromkeys(block.width for block in structure.blocks))
        raise InvalidRequest(
            f"The plan cuts the embedding width of {structure.name}, but this architecture has a fixed embedding width"
            f" ({', '.join(map(str, widths))}). Leave embed empty in the plan."
        )


def check_fixed(plan: BlockPlan, block: Block, fixed: tuple[Axis, ...]) -> None:
    inputs = (plan.qkv_inputs, plan.proj_inputs, plan.fc1_inputs)
    if "inputs" in fixed and inputs != (None, None, None):
        raise InvalidRequest(
            f"{block.name}: the plan removes inputs of single layers, which this architecture does not allow. Keep all"
            " inputs of each layer."
        )
    if "halves" in fixed and not (plan.heads and plan.neurons):
        raise InvalidRequest(
            f"{block.name}: the plan removes one sublayer (attention or MLP), which this architecture does not allow."
            " Keep both sublayers, or remove the block."
        )
    dims = [axis for axis in ("qk", "v") if axis in fixed]
    if block.attention is None or not dims:
        return
    whole = whole_block(plan.source, block).heads
    for head in plan.heads:
        number = head.v[0] // block.attention.v_dim if head.v else -1
        if not 0 <= number < len(whole) or any(getattr(head, axis) != getattr(whole[number], axis) for axis in dims):
            names = {"qk": f"all {block.attention.qk_dim} q/k dims", "v": f"all {block.attention.v_dim} v dims"}
            allowed = "complete heads only" if len(dims) == 2 else "complete heads, and of the other dims inside them"
            raise InvalidRequest(
                f"{block.name}: the plan removes dims inside heads. This architecture allows the removal of {allowed}."
                f" Keep {' and '.join(names[axis] for axis in dims)} of each head that stays."
            )


def check_exact(plan: BlockPlan, name: str, precision: str) -> None:
    if plan.exact and precision != "int8":
        raise InvalidRequest(
            f"{name}: the plan has precision {precision} and lists layers in exact. Only an int8 plan can keep layers"
            " in fp32. Leave exact empty, or use precision int8."
        )
    if unknown := sorted(set(plan.exact) - set(LAYERS)):
        raise InvalidRequest(
            f"{name}: the plan lists the layer {unknown[0]!r} in exact, but there is no such layer. Use these layers:"
            f" {', '.join(LAYERS)}."
        )


def check_block(plan: BlockPlan, block: Block, embed: Sequence[int], patches: int) -> int:
    """Check the plan of one block, and return the number of patch tokens that leave the block.

    embed: the embedding dims that the plan of the network keeps in this block.
    """
    if plan.heads and block.attention:
        a = block.attention
        if len({(len(h.qk), len(h.v)) for h in plan.heads}) > 1:
            raise InvalidRequest(
                f"{block.name}: the heads of the plan keep different numbers of dims. All heads of a block must keep"
                " the same number of dims, because one product computes them together. Keep the same number of q/k dims"
                " and the same number of v dims in every head."
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
            _check_subset(label, inputs, set(embed), block.name)
    if plan.tokens is None:
        return patches
    if not 1 <= plan.tokens.kept < patches:
        raise InvalidRequest(
            f"{block.name}: the plan keeps {plan.tokens.kept} patch tokens. A token reduction in this block can keep 1"
            f" to {patches - 1} patch tokens. Choose a number in this range."
        )
    if (plan.tokens.reducer == "merge") != (plan.tokens.score == "similarity"):
        raise InvalidRequest(
            f"{block.name}: the plan combines reducer {plan.tokens.reducer!r} with score {plan.tokens.score!r}."
            " Reducer 'merge' needs score 'similarity', and the other reducers need another score. Change one of the"
            " two."
        )
    if plan.tokens.reducer == "merge" and block.attention is not None and block.attention.table:
        raise InvalidRequest(
            f"{block.name}: the block uses relative positions, but merged tokens have no place in the grid. Reducer"
            " 'merge' is not allowed here. Use another reducer."
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
                    f"Block {block.source} cannot rank tokens at its start, because no attention before it ranks these"
                    " tokens. An earlier token reduction or a new stage makes earlier attention invalid. Reduce the"
                    " tokens in the middle of the block, or use score 'cumulative'."
                )
            scored = not spent
        scored = scored or bool(block.heads)
        if at == "middle":
            if not block.heads:
                raise InvalidRequest(
                    f"Block {block.source} cannot rank tokens in its middle, because the plan removes its attention."
                    " Keep the attention, or reduce the tokens in another block."
                )
            scored = not spent
    scores = sorted({block.tokens.score for block in blocks if block.tokens is not None})
    if len(scores) > 1:
        raise InvalidRequest(
            f"The token reductions of the plan use the scores {', '.join(scores)}. All of them must use the same"
            " score. Choose one score."
        )
    reducers = {block.tokens.reducer for block in blocks if block.tokens is not None}
    if "merge" in reducers and reducers & set(PACKAGING):
        raise InvalidRequest(
            f"The plan uses the reducers {', '.join(sorted(reducers))}. One plan cannot use both merged tokens"
            " (reducer 'merge') and a fused token (reducers 'fuse' and 'weighted'). Choose one of the two."
        )


def _check_members(noun: str, members: tuple[int, ...], size: int, where: str) -> None:
    if not members:
        raise InvalidRequest(f"{where}: the plan keeps no {noun}. It must keep at least one {noun}. Add one.")
    if len(set(members)) != len(members) or min(members) < 0 or max(members) >= size:
        raise InvalidRequest(
            f"{where}: the plan keeps the {noun} indices {_shown(members)}. They must be distinct numbers from 0 to"
            f" {size - 1}. Correct the indices."
        )


def _check_subset(noun: str, members: tuple[int, ...], allowed: set[int], where: str) -> None:
    if not members or len(set(members)) != len(members) or not set(members) <= allowed:
        raise InvalidRequest(
            f"{where}: the plan keeps the {noun} indices {_shown(members)}. They must be distinct, at least one, and"
            " among the members that the plan keeps. Correct the indices."
        )


def _shown(members: tuple[int, ...]) -> str:
    text = str(list(members))
    return text if len(text) <= 80 else text[:77] + "..."
