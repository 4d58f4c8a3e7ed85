"""Plans that keep the first members of every axis."""

import dataclasses
from typing import Any

from models.structure import Plan, Structure, TokenPlan, identity


def plan_of(structure: Structure, keep: float) -> Plan:
    """Return a plan that keeps the first heads and neurons of every block."""
    whole = identity(structure)
    blocks = tuple(
        dataclasses.replace(block, heads=_first(block.heads, keep), neurons=_first(block.neurons, keep))
        for block in whole.blocks
    )
    return dataclasses.replace(whole, blocks=blocks)


def with_tokens(plan: Plan, structure: Structure, keep: float) -> Plan:
    """Add a token reduction to the first block of every stage that may lose tokens."""
    blocks = list(plan.blocks)
    for first, stage in zip(structure.first_blocks, structure.stages, strict=True):
        patches = stage.blocks[0].tokens - structure.prefix
        if stage.free_tokens and round(keep * patches) >= 1:
            blocks[first] = dataclasses.replace(blocks[first], tokens=TokenPlan(round(keep * patches), "drop"))
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _first(members: tuple[Any, ...], keep: float) -> tuple[Any, ...]:
    return members[: max(1, round(keep * len(members)))] if members else members
