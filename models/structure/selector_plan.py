"""From token keeps that a search found to the stages that get selectors. Standard library only."""

import dataclasses

from models.structure.block_plan import BlockPlan, TokenPlan, TokenScore
from models.structure.plan import Plan

SIMILAR = 0.1
"""Neighbouring stages whose counts differ by less than this share of the larger one are one stage."""


def without_selectors(plan: Plan) -> Plan:
    """The class token's attention (or what is received) in the place of selectors, which say nothing before they are
    trained. What they cost is priced and measured all the same: by the plan itself."""
    learned = any(block.tokens is not None and block.tokens.score == "selector" for block in plan.blocks)
    return with_score(plan, "attention") if learned else plan


def with_score(plan: Plan, score: TokenScore) -> Plan:
    """The same tokens kept, ranked by another score."""
    blocks = (
        block if block.tokens is None else dataclasses.replace(block, tokens=dataclasses.replace(block.tokens, score=score))
        for block in plan.blocks
    )  # fmt: skip
    return dataclasses.replace(plan, blocks=tuple(blocks))


def merge_stages(plan: Plan) -> Plan:
    """Fewer selectors at next to no loss (SPViT, section 3.4), from the last stage to the first.

    Of two similar neighbours one stays: at the earlier block, with the later count, so that no block sees more tokens than
    before and a budget that was met stays met. A merged stage is compared again, with its new count.
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
