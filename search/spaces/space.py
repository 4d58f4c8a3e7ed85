"""A `Space` is where a method searches. It turns a few numbers into a policy, and a policy into a plan."""

from collections.abc import Sequence
from typing import Protocol

from models.structure import Plan, Structure
from search.policy import Policy
from search.ranking import Array


class Space(Protocol):
    """A space of policies for one network.

    A direction is a point x of the search cube [0, 1]^d. It says how much each dimension is cut in proportion to the
    others. `along` shrinks from the whole network (t = 0) over x itself (t = 1) to the smallest one of the space
    (t = 2), which is the same for all directions. So each direction ends within every budget that can be met at all.
    """

    structure: Structure

    @property
    def dimensions(self) -> list[str]: ...

    def along(self, direction: Sequence[float], t: float) -> Policy: ...

    def canonical(self, points: Array) -> Array:
        """Replace each direction by the one that represents all directions with the same meaning. points (n, d)."""
        ...

    def starts(self) -> list[list[float]]:
        """Directions worth trying first."""
        ...

    def fuller(self, policy: Policy, steps: int) -> list[Policy]:
        """The policy, then ever larger ones along the finest axis, to use up what coarse steps left of a budget."""
        ...

    def by_block(self, policy: Policy) -> Policy | None:
        """The same policy with numbers of its own for each block, none of them below the least of the space. A local
        search moves between such policies. None: this space has no local search."""
        ...

    def sketch(self, policy: Policy) -> Structure:
        """The structure of `plan(policy)`, computed without choosing members. Pricing needs no more than this, and it
        is a hundred times cheaper."""
        ...

    def plan(self, policy: Policy) -> Plan: ...
