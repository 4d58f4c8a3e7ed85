"""A `Space` is where a method searches: how a few numbers become a policy, and a policy a plan."""

from collections.abc import Sequence
from typing import Protocol

from models.structure import Plan, Structure
from search.policy import Policy
from search.ranking import Array


class Space(Protocol):
    """Directions x in [0, 1]^d say how eagerly each dimension gives. `along` shrinks from everything (t = 0) over x itself
    (t = 1) to the smallest network of the space (t = 2), the same one for every direction, so that each direction ends
    within every budget that can be met at all."""

    structure: Structure

    @property
    def dimensions(self) -> list[str]: ...

    def along(self, direction: Sequence[float], t: float) -> Policy: ...

    def canonical(self, points: Array) -> Array:
        """Of the directions that mean the same, the one that stands for all. points (n, d)."""
        ...

    def starts(self) -> list[list[float]]:
        """Directions worth trying first."""
        ...

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        """The policy, then ever larger ones along the finest axis, to use up what lumps have left of a budget."""
        ...

    def sketch(self, policy: Policy) -> Structure:
        """The structure of `plan(policy)`, without naming members: what pricing needs, a hundred times cheaper."""
        ...

    def plan(self, policy: Policy) -> Plan: ...
