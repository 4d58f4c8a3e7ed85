"""Choose the blocks that get a token selector, from the token counts that a search found. Standard library only."""

import dataclasses

from models.structure.block_plan import BlockPlan, TokenPlan, TokenScore
from models.structure.plan import Plan

SIMILAR = 0.1
"""Two neighbouring reductions are merged if their token counts differ by less than this share of the larger count."""


def without_selectors(plan: Plan) -> Plan:
    """Replace token selectors by the attention score, because a selector gives no useful score before it is trained.

    The cost of the selectors is not lost: the original plan is the one that is priced and measured.
    """
    learned = any(block.tokens is not None and block.tokens.score == "selector" for block in plan.blocks)
    return with_score(plan, "attention") if learned else plan


def with_score(plan: Plan, score: TokenScore) -> Plan:
    """Return a plan that keeps as many tokens at the same blocks, but ranks them by another score."""
    blocks = (
        block
        if block.tokens is None
        else dataclasses.replace(block, tokens=dataclasses.replace(block.tokens, score=score))
        for block in plan.blocks
    )
    return dataclasses.replace(plan, blocks=tuple(blocks))


def merge_stages(plan: Plan) -> Plan:
    """Merge neighbouring reductions with similar token counts, from the last to the first (SPViT, section 3.4).

    This saves selectors at almost no loss. Of two similar neighbours one stays: at the earlier block, with the later
    (smaller) count. So no block processes more tokens than before, and a budget that was met stays met. The merged
    reduction is then compared with the one before it, with its new count.
    """
    blocks, later = list(plan.blocks), None
    for place in reversed(range(len(blocks))):
        tokens = blocks[place].tokens
        if tokens is None:
            continue
        if later is not None and _similar(tokens, blocks[later]):
            merged = dataclasses.replace(tokens, kept=_kept(blocks[later]))
            blocks[place], blocks[later] = _with(blocks[place], merged), _with(blocks[later], None)
        later = place
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _similar(tokens: TokenPlan, later: BlockPlan) -> bool:
    return tokens.kept - _kept(later) < SIMILAR * tokens.kept


def _kept(block: BlockPlan) -> int:
    assert block.tokens is not None
    return block.tokens.kept


def _with(block: BlockPlan, tokens: TokenPlan | None) -> BlockPlan:
    return dataclasses.replace(block, tokens=tokens)
